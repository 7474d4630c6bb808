"""Smaller and portable models: physical removal of channels, and the formats that other tools read."""
