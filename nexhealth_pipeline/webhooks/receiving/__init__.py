"""The server that NexHealth posts to, from a connection to the commit after which it is answered: `serving.serve`."""
