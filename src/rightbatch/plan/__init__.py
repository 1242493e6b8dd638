"""Deciding: from measured facts and fitted laws to a batch, its split and its rate."""
