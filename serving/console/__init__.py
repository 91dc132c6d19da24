"""The browser console: pages without data of their own, which use the public routes alone."""
