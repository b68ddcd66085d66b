"""A local NexHealth: API server over synthetic practices. Imports nothing else of this package."""
