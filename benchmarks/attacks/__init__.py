"""Honest callers beside callers who mean harm: are their steps late?"""
