r"""The mathematics of ZeroUnlearn on plain tensors: no model, no files, no randomness.

Rows are samples. The paper (arXiv 2605.18879) writes samples as columns; it is transposed once, here.

======  ===========  =====================================================================
symbol  shape        meaning
======  ===========  =====================================================================
W       (d, m)       down-projection weight of an edited layer, keys to values
K       (n, m)       forget keys, one row per request
M       (n, d)       W K, what the layer writes for those keys today: ``K @ W.mT``
R       (n, d)       residual that the layer is asked to add to M
C       (m, m)       raw second moment E[k kᵀ] of keys over ordinary text
V_u     (n, d)       down-projection outputs that make the model say the sensitive answers
Q       (d, r)       orthonormal basis of the span of V_u
======  ===========  =====================================================================

Reading order: `moments`, `subspace`, `solve`, `on_keys`, `nullspace`; `restraint` for variants of MEMIT.
"""
