"""Namespace of the generated protobuf packages."""
