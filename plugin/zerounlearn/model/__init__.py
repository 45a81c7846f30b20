"""Access to a transformer: layout, token positions, hooks, replay of upper layers.

Reading order: `layout`, `tokens`, `hooks`, `replay`.
"""
