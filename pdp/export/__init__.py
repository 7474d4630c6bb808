"""Smaller and portable models: channels removed physically, and the formats that other tools read."""
