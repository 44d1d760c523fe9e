"""Configuration, Ray placement, launch and supervision. The only package that imports ray."""
