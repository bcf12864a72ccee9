"""Pinned manifests."""
