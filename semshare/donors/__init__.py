"""Donors and the indexes that find them."""
