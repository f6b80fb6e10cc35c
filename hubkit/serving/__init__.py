"""Models that answer at an address, whoever serves them, and the clients that talk to them."""
