"""A local NexHealth: API server over synthetic practices. Imports nothing else of this package."""

from .auth import SANDBOX_API_KEY
from .deliveries import RETRY_AFTER, Attempt, Delivery
from .endpoints import Endpoint, Subscription
from .events import EVENTS
from .faults import KINDS_OF_FAULT, FaultRule, Faults
from .hold import FolderHeldError, holder_of
from .log import Asked, RequestLog
from .mischief import DeliverySettings
from .posting import sign
from .server import NoListeningError, SandboxServer, build_app, serve
from .state import Change, NoSuchRowError, State
from .truth import truth
from .webhooks import Webhooks
from .world import DEFAULT_APPOINTMENTS, DEFAULT_PATIENTS, DEFAULT_SEED, World, build_world

__all__ = [
    "DEFAULT_APPOINTMENTS",
    "DEFAULT_PATIENTS",
    "DEFAULT_SEED",
    "EVENTS",
    "KINDS_OF_FAULT",
    "RETRY_AFTER",
    "SANDBOX_API_KEY",
    "Asked",
    "Attempt",
    "Change",
    "Delivery",
    "DeliverySettings",
    "Endpoint",
    "FaultRule",
    "Faults",
    "FolderHeldError",
    "NoListeningError",
    "NoSuchRowError",
    "RequestLog",
    "SandboxServer",
    "State",
    "Subscription",
    "Webhooks",
    "World",
    "build_app",
    "build_world",
    "holder_of",
    "serve",
    "sign",
    "truth",
]
