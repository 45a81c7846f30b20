"""The field's gradient methods, one file each; a new file in this folder registers itself.

Reading order: `objectives` (one formula a function), `sequences`, `base`, then a method, then `descend` (the loop).
"""
