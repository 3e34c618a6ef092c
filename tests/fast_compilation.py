"""XLA's flags that compile the tests' programs in a fraction of the time; they run a little slower."""

from importlib import metadata

FLAGS = ["--xla_backend_optimization_level=0"]
# The older code generator needs a third of the time of the newer one, which is the only one from jaxlib 0.11 on.
if metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")

# XLA_FLAGS of a command in a process of its own: with one device, as on a user's CPU.
ONE_DEVICE = " ".join(FLAGS)
