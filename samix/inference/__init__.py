"""Namespace of the generated protobuf package of the Open Inference Protocol."""
