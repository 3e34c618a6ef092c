"""The evaluation step: a pure function of one replica."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from inpaint_jax import losses, metrics, models, perceptual, task
from inpaint_jax.step import Batch, Tree, judged


def make_eval_step(
    config: ml_collections.ConfigDict,
) -> Callable[[Tree, Batch], dict[str, jax.Array]]:
    """Returns `step(variables, batch)` for one replica: metrics of each example (B,), and `completed` as uint8.

    `variables` holds the generator's `params` and `batch_stats`, and under `frozen` what `perceptual.load_frozen`
    gives, where that is not empty; the batch is {image uint8, mask uint8, …}. Metrics are taken of the completed
    picture rounded to uint8, because that is what a user gets; the reconstruction losses beside them, `loss/<term>`, as
    in training, to be compared with it. With the discriminator's variables under `discriminator` there are
    `loss/generator` and `loss/discriminator` too; without one, the former is the sum of the reconstruction losses.
    """
    generator = models.build_generator(config, None)
    discriminator = models.build_discriminator(config, None)
    normal_maps = config.data.kind == "normal_maps"

    def step(variables: Tree, batch: Batch) -> dict[str, jax.Array]:
        example = task.evaluation_example(config, batch)
        seen = task.generator_input(config, example["image"], example["mask"])
        answer = generator.apply(variables, seen, train=False)
        answer = task.generator_output(config, example["image"], example["mask"], answer)
        output = task.to_uint8(answer, config.task.value_range)
        completed = jnp.where(batch["mask"] > 0, output, batch["image"])
        pictures = [picture.astype(jnp.float32) / 255.0 for picture in (completed, batch["image"])]
        values = metrics.image_metrics(*pictures, example["mask"], normal_maps)
        frozen = variables.get("frozen", {})
        if config.evaluation.lpips:
            values |= perceptual.lpips_metrics(frozen["lpips"], *pictures, example["mask"])
        images = {**example, "output": answer, "completed": task.complete(example["image"], example["mask"], answer)}
        images |= {"condition": seen, "features": perceptual.features_of(config, frozen, images)}
        terms = losses.reconstruction_losses(config.losses, images, config.task.value_range)
        if judge := variables.get("discriminator"):
            real, fake = (
                discriminator.apply(judge, judged(config, images, name), train=False)
                for name in ("image", config.discriminator.sees)
            )
            terms |= losses.adversarial_losses(config.losses, fake)
            real_label = config.discriminator.real_label
            values["loss/discriminator"] = losses.bce_logits(real, real_label) + losses.bce_logits(fake, 0.0)
        if judge or discriminator is None:
            values["loss/generator"] = losses.weighted_sum(config.losses, terms)
        values |= terms
        # An integer hides what is not a number: a generator that has gone wrong must not get figures.
        sound = jnp.isfinite(answer).all(axis=(1, 2, 3))
        values = {name: jnp.where(sound, value, jnp.nan) for name, value in values.items()}
        # For the eye: holes black, whatever the generator's input holds there.
        return {**values, "output": output, "completed": completed, "masked": batch["image"] * (1 - batch["mask"])}

    return step
