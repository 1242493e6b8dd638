"""Gradient noise while a model trains: where it is read, and what it amounts to."""
