"""A local NexHealth: API server over synthetic practices. Imports nothing else of this package."""

from .auth import SANDBOX_API_KEY
from .faults import KINDS_OF_FAULT, FaultRule, Faults
from .log import Asked, RequestLog
from .server import SandboxServer, build_app, serve
from .state import Change, NoSuchRowError, State
from .truth import truth
from .world import DEFAULT_APPOINTMENTS, DEFAULT_PATIENTS, DEFAULT_SEED, World, build_world

__all__ = [
    "DEFAULT_APPOINTMENTS",
    "DEFAULT_PATIENTS",
    "DEFAULT_SEED",
    "KINDS_OF_FAULT",
    "SANDBOX_API_KEY",
    "Asked",
    "Change",
    "FaultRule",
    "Faults",
    "NoSuchRowError",
    "RequestLog",
    "SandboxServer",
    "State",
    "World",
    "build_app",
    "build_world",
    "serve",
    "truth",
]
