"""TODO cggm_ray/strategies/__init__.py"""
