"""Weak and strong scaling, measured on real runs."""
