"""Tests of the console in a real browser, over a service without a model."""
