"""Ground: the message, its codec, the broker port and the bus."""
