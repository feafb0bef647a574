"""Build a cache once, train from it, and print the energy of every epoch next to its loss.

python examples/train_from_a_cache.py
"""

import keras

import joulecache as jc

built = jc.precompute("synthetic:200", "example-cache", "decode|resize(72) || random_crop(64)|flip_lr")
print(f"{built.manifest.chain}: {built.manifest.splits['train'].records} training images")

train = jc.load("example-cache", "train", batch_size=32)
val = jc.load("example-cache", "val", batch_size=32)
model = keras.Sequential(
    [
        keras.Input((64, 64, 3)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(16, 3, 2, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(train.num_classes),
    ]
)
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])

energy = jc.EnergyCallback(jc.Meter())
history = model.fit(
    train.apply(energy.timed), validation_data=val, epochs=3, shuffle=False, callbacks=[energy], verbose=0
)
for epoch, (loss, energy_j) in enumerate(zip(history.history["loss"], history.history["energy_j"], strict=True)):
    print(f"epoch {epoch}: loss {loss:.3f}, {energy_j:.1f} J")
