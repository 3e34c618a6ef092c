"""Shows a page in the browser, on this machine alone, to paint holes into pictures and fill them.

    python launch/demo.py                                    # with the models that come along
    python launch/demo.py --model runs/unet_cosine-quick

Prints the address, http://127.0.0.1:7860/ by default; Ctrl-C ends it. Needs no network. Exit codes: 0 ended by
Ctrl-C; 1 an error with a message; 2 wrong usage.
"""

from absl import flags

from inpaint_jax import command_line, demo_gate

_MODEL = flags.DEFINE_multi_string(
    "model", [], "run folder, or its generator/ folder; repeat it to offer several; default: those that come along"
)
_PORT = flags.DEFINE_integer("port", 7860, "port to listen on; 0 = a free one", lower_bound=0, upper_bound=65535)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen on; another lets other machines in")


def _main() -> int:
    demo_gate.check_address(_HOST.value, _PORT.value)  # before anything slow, so that the answer comes at once
    command_line.prepare_jax()
    from inpaint_jax import demo, demo_page

    models = demo.load_models(demo.models_for(_MODEL.value))
    demo_page.serve(models, _HOST.value, _PORT.value)
    return 0


if __name__ == "__main__":
    command_line.run(_main, __doc__, urls=["model"])
