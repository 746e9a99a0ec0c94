"""What a server hosts, as the Open Inference Protocol describes it over gRPC and over HTTP."""

import importlib.metadata
from collections.abc import Sequence

from mixer_server.front.readiness import Readiness
from mixer_server.hosting.registry import Registry
from mixer_server.oip.tensors import INPUTS, OUTPUTS, TensorSpec
from samix.inference.v2 import inference_pb2 as pb
from samix.mixing.frozen import FrozenMixer

PLATFORM = "samix"
EXTENSIONS = ("model_configuration", "statistics")
"""Those that are spoken over gRPC; over HTTP none is."""

_DISTRIBUTION = "samix-service"

TensorMetadata = pb.ModelMetadataResponse.TensorMetadata


class Catalogue:
    """Describes a server and its models; a model is a mixer."""

    def __init__(self, registry: Registry, readiness: Readiness, max_images: int) -> None:
        """Describe what a registry hosts.

        Args:
            registry: the mixers.
            readiness: whether they take work.
            max_images: most images of one request.
        """
        self._registry = registry
        self._readiness = readiness
        self._max_images = max_images

    @property
    def is_ready(self) -> bool:
        """Whether all models that the server starts with take work, and it does not go away."""
        return self._readiness.obstacle is None

    def server(self, extensions: Sequence[str] = EXTENSIONS) -> pb.ServerMetadataResponse:
        """Describe the server, and the extensions of the protocol that are spoken to the caller."""
        version = importlib.metadata.version(_DISTRIBUTION)
        return pb.ServerMetadataResponse(name=_DISTRIBUTION, version=version, extensions=extensions)

    def is_model_ready(self, name: str, version: str) -> bool:
        """Tell whether a model takes work.

        Raises:
            MixerNotFound, MixerUnavailable: as `Registry.find`.
        """
        return self._readiness.is_ready(self._registry.find(name, version).name, version)

    def model(self, name: str, version: str) -> pb.ModelMetadataResponse:
        """Describe a model's tensors.

        Raises:
            MixerNotFound, MixerUnavailable: as `Registry.find`.
        """
        mixer = self._registry.find(name, version)
        versions = [other.version for other in self._registry.versions(mixer.name)]
        return pb.ModelMetadataResponse(
            name=mixer.name,
            versions=versions,
            platform=PLATFORM,
            inputs=[_metadata(spec) for spec in INPUTS],
            outputs=[_metadata(spec) for spec in OUTPUTS],
            properties=self._properties(mixer),
        )

    def config(self, name: str, version: str) -> pb.ModelConfig:
        """Say how a model is run.

        Raises:
            MixerNotFound, MixerUnavailable: as `Registry.find`.
        """
        mixer = self._registry.find(name, version)
        inputs = [
            pb.ModelInput(name=spec.name, data_type=spec.datatype.number, dims=spec.shape, optional=spec.is_optional)
            for spec in INPUTS
        ]
        outputs = [pb.ModelOutput(name=spec.name, data_type=spec.datatype.number, dims=spec.shape) for spec in OUTPUTS]
        parameters = {name: pb.ModelParameter(string_value=value) for name, value in self._properties(mixer).items()}
        return pb.ModelConfig(
            name=mixer.name,
            platform=PLATFORM,
            backend=PLATFORM,
            input=inputs,
            output=outputs,
            parameters=parameters,
        )

    def index(self, *, only_ready: bool) -> pb.RepositoryIndexResponse:
        """List all versions of all models."""
        response = pb.RepositoryIndexResponse()
        for mixer in self._registry.mixers:
            is_ready = self._readiness.is_ready(mixer.name, mixer.version)
            if is_ready or not only_ready:
                state, reason = ("READY", "") if is_ready else ("UNAVAILABLE", self._readiness.obstacle or "warming up")
                response.models.add(name=mixer.name, version=mixer.version, state=state, reason=reason)
        return response

    def _properties(self, mixer: FrozenMixer) -> dict[str, str]:
        spec = mixer.spec
        return {
            "sha256": mixer.sha256,
            "encoder": spec.backbone.name,
            "mode": spec.mode,
            "upsampling": spec.rendering.upsampling,
            "lam_margin": str(spec.rendering.lam_margin),
            "image_size": str(spec.image_size),
            "min_side": str(spec.min_side),
            "max_side": str(spec.max_side),
            "max_images": str(self._max_images),
            "max_tokens": str(spec.max_tokens),
            "stride": str(spec.stride),
        }


def _metadata(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(name=spec.name, datatype=spec.datatype.name, shape=spec.shape)
