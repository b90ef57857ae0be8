# The best items for a user of the data set: TensorFlow, without kd_jax. export.formats has 'numpy'.
import numpy as np
import tensorflow as tf

with np.load("runs/quickstart/export/vectors.npz") as file:
    ids = {name: file[name].tolist() for name in ("users", "items")}
    users, items, bias = (
        tf.constant(file[name]) for name in ("user_vectors", "item_vectors", "item_bias")
    )
user = ids["users"].index(ids["users"][0])
best = tf.math.top_k(tf.linalg.matvec(items, users[user]) + bias, 10).indices
print([ids["items"][item] for item in best.numpy().tolist()])
