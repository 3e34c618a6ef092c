"""Cuts crops from a folder of photographs into a data set of three splits, checking every file.

    python launch/prepare_data.py --source photos --check
    python launch/prepare_data.py --source photos --out data --name my_photos --size 256
    python launch/prepare_data.py --source photos --out data --name my_photos --how random --per_picture 4
    python launch/prepare_data.py --recipe normal_maps --out data

All crops of a picture, and of its copies, lie in one split. A run that was stopped or killed goes on with the same
command; the data set appears when it is complete. While it is made, it takes twice its space below --out. A recipe
rebuilds a published data set from Debian packages; those that are not in --packages are downloaded with apt-get.

Exit codes: 0 done, or already there; 1 an error, or --check found a bad file; 2 wrong usage; 130 interrupted.
"""

from pathlib import Path

from absl import flags

from inpaint_jax import command_line

_SOURCE = flags.DEFINE_string("source", None, "folder of photographs, at any depth")
_OUT = flags.DEFINE_string("out", None, "folder for data sets; this one becomes <out>/<name>")
_NAME = flags.DEFINE_string("name", None, "name of the data set: small letters, digits and underscores")
_RECIPE = flags.DEFINE_string(
    "recipe", None, "published data set: normal_maps, landscapes, landscapes_public_domain; or a JSON file"
)
_PACKAGES = flags.DEFINE_string("packages", None, "recipe: folder of its Debian packages; default <out>/packages")
_CHECK = flags.DEFINE_bool("check", False, "only read every file and list what cannot be used; writes nothing")
# Fields of CropSettings.
_CROPS = (
    flags.DEFINE_integer("size", 256, "side of a crop, in pixels", lower_bound=1),
    flags.DEFINE_enum("how", "grid", ["grid", "random"], "crops side by side, or at random places"),
    flags.DEFINE_integer("stride", 0, "grid: distance of crops, in pixels; 0 = size, no overlap", lower_bound=0),
    flags.DEFINE_integer("per_picture", 0, "crops of a picture; grid: those with most detail, 0 = all", lower_bound=0),
    flags.DEFINE_float("min_detail", 0.0, "least mean difference of neighbouring pixels, of 255", lower_bound=0.0),
    flags.DEFINE_float("scale", 1.0, "scale pictures by this factor before cutting"),
    flags.DEFINE_integer("seed", 0, "random: another number, other places", lower_bound=0),
)
_FRACTIONS = flags.DEFINE_list("split_fractions", ["0.8", "0.1", "0.1"], "shares of train, validation and test")
# Arguments of prepare; the first three are for recipes too.
_OPTIONS = (
    flags.DEFINE_enum("output", "array_record", ["array_record", "png"], "for TFDS, or folders of PNG files"),
    flags.DEFINE_integer("processes", 0, "pictures cut at once; 0 = one per core", lower_bound=0),
    flags.DEFINE_bool("overwrite", False, "replace a data set of this name that was made in another way"),
    flags.DEFINE_string("group_pattern", "", "file names with the same first group of this pattern share a split"),
    flags.DEFINE_integer("skip_bad", 0, "leave out up to so many unreadable files", lower_bound=0),
    flags.DEFINE_string("description", "", "kept with the data set, as are the next three"),
    flags.DEFINE_string("homepage", "", "where the photographs come from"),
    flags.DEFINE_string("licence", "", "licence of the photographs"),
    flags.DEFINE_string("citation", "", "what to cite for the photographs"),
)


def _main() -> int:
    from inpaint_jax.data import crops, prepare, recipes

    if _RECIPE.value is not None:
        for flag in (_SOURCE, _NAME, _CHECK, _FRACTIONS, *_CROPS, *_OPTIONS[3:]):
            if flag.present:
                raise flags.ValidationError(f"--{flag.name} does not go with --recipe, which decides it: leave it out")
        options = {flag.name: flag.value for flag in _OPTIONS[:3]}
        print(recipes.build(_RECIPE.value, Path(command_line.require(_OUT)), _PACKAGES.value, **options))
        return 0
    source = Path(command_line.require(_SOURCE))
    try:
        fractions = [float(fraction) for fraction in _FRACTIONS.value]
        settings = crops.CropSettings(**{flag.name: flag.value for flag in _CROPS})
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error
    options = {flag.name: flag.value for flag in _OPTIONS}
    if _CHECK.value:
        checked = prepare.check(source, settings, options["processes"])
        print(prepare.report(checked))
        return 1 if checked.bad else 0
    out, name = Path(command_line.require(_OUT)), command_line.require(_NAME)
    print(prepare.describe(prepare.prepare(source, out, name, settings, split_fractions=fractions, **options)))
    return 0


if __name__ == "__main__":
    # What describes the data set may be an address.
    command_line.run(_main, __doc__, urls=("description", "homepage", "licence", "citation"))
