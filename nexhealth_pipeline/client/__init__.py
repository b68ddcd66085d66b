"""How to talk to NexHealth: authentication, the one request function, budget, pages."""
