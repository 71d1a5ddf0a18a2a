"""The project's errors: one root, one subclass per kind of mistake.

Every message is one sentence or two: what was wrong, what we got, what to do. The CLI prints it
and exits with code 2; no user's mistake ends in a traceback.
"""


class CrossroadsError(Exception):
    """Root of every error that a user can cause or can act on."""


class ConfigError(CrossroadsError):
    """An option, a config key or a combination of them that cannot work."""


class WeightsError(CrossroadsError):
    """Model weights that are missing, damaged, or cannot be fetched."""


class PairError(CrossroadsError):
    """Two models that cannot work together, or a pair that nobody knows."""


class RouterError(CrossroadsError):
    """A router folder that is damaged or belongs to other models."""


class DataError(CrossroadsError):
    """Problems, labels or datasets that cannot be used as they are."""


class RequestError(CrossroadsError):
    """A generation request that cannot be served: empty, too long, or out of range."""


class EngineError(CrossroadsError):
    """An inference engine that is missing or failed while it worked."""


class UnreachableError(EngineError):
    """A model behind servers, none of which answers; the same request may succeed later."""


class BusyError(EngineError):
    """An engine with more requests waiting than it takes; the same request may succeed later."""


class ClosedError(EngineError):
    """An engine that takes no requests any more: it is shutting down, or has stopped."""


class StoppedError(ClosedError):
    """An engine that failed as a whole and is gone."""
