"""ZeroUnlearn: closed-form knowledge unlearning for language models, as an EasyEdit plugin.

Importing this module has no effect on anything else; `import zerounlearn.easyedit` registers the method
with the framework. Read the package bottom up: `core` (mathematics on plain tensors), `model` (access to
a transformer), `method` (ZeroUnlearn itself), then the edges: `assets`, `easyedit`, `cli`.
"""

__version__ = "0.1.0"
