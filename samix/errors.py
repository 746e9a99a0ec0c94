"""Everything that can go wrong, as one tree; status.py gives each remote error its gRPC status.

InputError (ValueError)      what a person wrote: programs print the sentence and exit with 2
  ArtefactError              a mixer file that is missing, damaged or of another format
  ShardError                 a shard, index or sample that cannot be used
  ConfigError                a flag, recipe or environment variable

MixerError                   what happened to one mix
  BadBatch (also InputError) the batch itself is wrong; retrying cannot help
  MixerNotFound              no mixer of that name or version on that server
  MixerUnavailable           down, warming up or draining; try another replica
    NotTrusted               no TLS with it: another authority, expired, another name, or no TLS there at all
  MixerOverloaded            queue full; try again after `retry_after_s`
  MixerTimeout               no answer before the deadline; safe to try again
  MixerCancelled             the caller gave up
  MixerBroken                a bug on the server; tell its operators
  WrongState                 what was asked for needs another state: of the server, or of a co-training session
    StaleCursor              a subscription cannot go on there: other data, seed, mixer version or sizes
  ConsumerTaken              another client is that consumer
  RankTaken                  that rank of a co-training session is connected already
  NotAuthenticated           no token, or none that the server knows; retrying cannot help
  NotPermitted               the token lacks the role
    NotTheOwner              the token is not that of the session
  DataLost                   shards of a dataset are damaged beyond the budget, or what was sent came damaged
"""


class InputError(ValueError):
    """Something a person wrote is wrong; the message holds the value and the cure."""


class ArtefactError(InputError):
    """A mixer artefact cannot be read or used."""


class ShardError(InputError):
    """A shard, an index or a sample cannot be read or used."""


class ConfigError(InputError):
    """A flag, a recipe or an environment variable is wrong."""


class MixerError(Exception):
    """One mix failed; the subclass says what a caller can do about it."""


class BadBatch(MixerError, InputError):
    """The batch is wrong: rank, dtype, size, lam or partner."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        """The field of the request that is wrong, where it is one."""


class MixerNotFound(MixerError):
    """The server hosts no mixer, or dataset, of that name or version."""


class MixerUnavailable(MixerError):
    """The server cannot be reached, warms up or drains."""


class NotTrusted(MixerUnavailable):
    """The two sides could not agree on TLS; another replica may be better, the same one only after a change."""


class MixerOverloaded(MixerError):
    """The server refused the work because its queue, or its memory, is full."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """Seconds after which to come again; infinite where that never helps."""


class MixerTimeout(MixerError):
    """The deadline passed before the answer came."""


class MixerCancelled(MixerError):
    """The caller cancelled the request."""


class MixerBroken(MixerError):
    """The server failed in a way it should not have."""


class WrongState(MixerError):
    """The server, or a co-training session on it, is not in the state that was needed."""


class StaleCursor(WrongState):
    """A cursor is of another dataset, seed, mixer version or shape of the epoch than what is served now."""


class ConsumerTaken(MixerError):
    """Another client is served as this consumer of the epoch, or took over from this one."""


class RankTaken(MixerError):
    """A rank of a co-training session is connected already."""


class NotAuthenticated(MixerError):
    """The server wants a token, and got none that it knows."""


class NotPermitted(MixerError):
    """The token is good for other things than this."""


class NotTheOwner(NotPermitted):
    """A co-training session belongs to somebody else: the token is another."""


class DataLost(MixerError):
    """Samples of a dataset are damaged, and more of them than the server may leave out; or weights came damaged."""
