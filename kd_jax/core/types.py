"""Array types and the dimension key of the whole library.

B batch, P predicted positions per example, L sequence, D width, H heads, I items (the catalogue), U
users, K candidates, M targets per position, V vocabulary, C classes, N rows.

A *batch* is a dict of arrays with leading axis B, flat but for two entries. Models and objectives
read these keys (item indices are padded with ``PAD``):

==================  ===============  =============================================================
key                 shape            meaning
==================  ===============  =============================================================
user                int32 [B]        user index
history             int32 [B, L]     item indices, oldest first, newest last, padded on the left;
                                     in a packed batch several of them, padded on the right
targets             int32 [B, P, M]  item indices (rank) or class indices (rate)
target_weights      f32 [B, P, M]    share of each target; a row sums to 1, or to 0 without target
weights             f32 [B, P]       weight of each position in the mean
snapshot            int32 [B]        with trends: index of the popularity snapshot that holds at
                                     the time of the batch, the same for all rows
context_row         int32 [B]        row of the history as text, for a teacher that reads those
item                int32 [B]        rate only: the item of the pair
history_class       int32 [B, L]     rate only: rating class of each history item, or ``PAD``
live_items          dict             width -> int32 [K]: distinct items of which the texts have at
                                     most so many tokens, for a language model in training
pair_ids            int32 [B, L]     cross-encoder in training: tokens of the user's text and of
                                     the item's text together
pair_mask           int32 [B, L]     0 padding, 1 a token of the user's text, 2
                                     (``encoder.SECOND``) a token of the item's text
interaction         int32 [B]        rate only: row of the data set
shown               int32 [B, P, K]  impressions only: the shown items, the clicked ones first
shown_clicks        int32 [B, P]     impressions only: the number of clicked items
row                 int32 [B]        position of the example in its table, by which cached soft
                                     labels are looked up; [B, L] in a packed batch
segment             int32 [B, L]     packed only (``data/examples/packed.py``): the window that a
                                     position belongs to
place               int32 [B, L]     packed only: the position in the padded form
labels of <name>    dict             cached soft labels that do not fit on the devices: the rows of
                                     teacher <name> for this batch
==================  ===============  =============================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from kd_jax.core.padding import PAD as PAD

Array = jax.Array
Batch = dict[str, Any]
Params = dict[str, Any]
PyTree = Any


class TrainState(NamedTuple):
    """Everything that a train step changes.

    step: int32 scalar, steps done. params, opt_state: pytrees. key: raw key data (uint32 [2]); each
    step folds its own number into it. auxiliary: parameters of losses, such as a projection, by
    term: trained and checkpointed with the model, but no part of it.
    """

    step: Array
    params: Params
    opt_state: PyTree
    key: Array
    auxiliary: Params = {}
