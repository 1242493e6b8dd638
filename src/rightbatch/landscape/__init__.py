"""Curvature, sharpness, temperature and pictures of the loss surface."""
