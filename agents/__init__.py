"""Minds: agents, the context of their handlers, the worker that runs them, and the client that asks them."""
