"""Access to a transformer: layout, offloaded weights, token positions, hooks, replay of upper layers, memory.

Reading order: `offload`, `structure`, `families`, `layout`, `tokens`, `hooks`, `replay`, `memory`.
"""
