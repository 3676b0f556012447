"""Licences by the Hub's id: what each is called, where its text is, and whether it lets images be passed on changed.

The ids are those that a card's metadata may have (huggingface.co/docs/hub/repositories-licenses). `is_open` is said of
licences alone that let anybody share the images and what is made from them; terms that are meant for models, and
families that do not say which licence is meant, count as not open.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from diffaug_datasets.core.errors import RecipeError

CC_URL = "https://creativecommons.org/licenses/{kind}/{version}/"
_CREATIVE_COMMONS = (
    *("cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
)
_OPEN = {
    "afl-3.0": "Academic Free License 3.0",
    "agpl-3.0": "AGPL 3.0",
    "apache-2.0": "Apache 2.0",
    "artistic-2.0": "Artistic License 2.0",
    "bsd": "BSD",
    "bsd-2-clause": "BSD 2-Clause",
    "bsd-3-clause": "BSD 3-Clause",
    "bsd-3-clause-clear": "BSD 3-Clause Clear",
    "bsl-1.0": "Boost Software License 1.0",
    "cdla-permissive-1.0": "CDLA Permissive 1.0",
    "cdla-permissive-2.0": "CDLA Permissive 2.0",
    "cdla-sharing-1.0": "CDLA Sharing 1.0",
    "ecl-2.0": "Educational Community License 2.0",
    "epl-1.0": "Eclipse Public License 1.0",
    "epl-2.0": "Eclipse Public License 2.0",
    "etalab-2.0": "Etalab Open License 2.0",
    "eupl-1.1": "EUPL 1.1",
    "gfdl": "GFDL",
    "gpl": "GPL",
    "gpl-2.0": "GPL 2.0",
    "gpl-3.0": "GPL 3.0",
    "isc": "ISC",
    "lgpl": "LGPL",
    "lgpl-2.1": "LGPL 2.1",
    "lgpl-3.0": "LGPL 3.0",
    "lgpl-lr": "LGPL for Linguistic Resources",
    "lppl-1.3c": "LPPL 1.3c",
    "mit": "MIT",
    "mpl-2.0": "MPL 2.0",
    "ms-pl": "Microsoft Public License",
    "ncsa": "NCSA",
    "odbl": "Open Database License",
    "odc-by": "ODC Attribution",
    "ofl-1.1": "SIL Open Font License 1.1",
    "osl-3.0": "Open Software License 3.0",
    "pddl": "Public Domain Dedication and License",
    "postgresql": "PostgreSQL License",
    "unlicense": "Unlicense",
    "wtfpl": "WTFPL",
    "zlib": "zlib",
}
_NOT_OPEN = {
    "bigcode-openrail-m": "BigCode OpenRAIL-M",
    "bigscience-bloom-rail-1.0": "BigScience BLOOM RAIL 1.0",
    "bigscience-openrail-m": "BigScience OpenRAIL-M",
    "c-uda": "Computational Use of Data Agreement",
    "cc": "a Creative Commons licence",
    "creativeml-openrail-m": "CreativeML OpenRAIL-M",
    "deepfloyd-if-license": "DeepFloyd IF Research License",
    "gemma": "Gemma Terms of Use",
    "llama2": "Llama 2 Community License",
    "openrail": "OpenRAIL",
    "openrail++": "OpenRAIL++-M",
    "other": "other terms",
    "unknown": "unknown",
}
_TEXTS = {
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "mit": "https://opensource.org/license/mit",
    "odbl": "https://opendatacommons.org/licenses/odbl/1-0/",
    "odc-by": "https://opendatacommons.org/licenses/by/1-0/",
    "pddl": "https://opendatacommons.org/licenses/pddl/1-0/",
    "etalab-2.0": "https://www.etalab.gouv.fr/licence-ouverte-open-licence/",
}
USUAL = ("cc-by-4.0", "cc0-1.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "mit", "other")
"""The ids that a sentence names where none is near."""


@dataclass(frozen=True)
class Licence:
    """One licence. `id`: the Hub's; `title`: as people say it; `url`: its text, or ''; `is_open`: see above."""

    id: str
    title: str
    url: str = ""
    is_open: bool = False


def _known() -> Mapping[str, Licence]:
    known = {"cc0-1.0": Licence("cc0-1.0", "CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/", True)}
    for name in _CREATIVE_COMMONS:
        kind, version = name.removeprefix("cc-").rsplit("-", 1)
        url = CC_URL.format(kind=kind, version=version)
        known[name] = Licence(name, f"CC {kind.upper()} {version}", url, "nd" not in kind.split("-"))
    known |= {name: Licence(name, title, _TEXTS.get(name, ""), True) for name, title in _OPEN.items()}
    known |= {name: Licence(name, title) for name, title in _NOT_OPEN.items()}
    return MappingProxyType({name: known[name] for name in sorted(known)})


LICENCES = _known()


def find_licence(text: str) -> Licence:
    """The licence that a text names: an id of the Hub, in any case, or the same words with spaces ("CC BY 4.0").

    Raises:
        RecipeError: there is none; suggests the nearest.
    """
    words = re.sub(r"\blicen[cs]e\b", " ", text.casefold())
    plain = re.sub(r"[\s_-]+", "-", words).strip("-.")
    if plain in LICENCES:
        return LICENCES[plain]
    newest_first = sorted((name for name in LICENCES if name.startswith(f"{plain}-")), reverse=True)
    longer = sorted(newest_first, key=len)
    near = [*longer, *difflib.get_close_matches(plain, LICENCES)]
    hint = ", ".join(map(repr, dict.fromkeys(near[:3])))
    guess = f"; did you mean {hint.replace(', ', ' or ')}?" if hint and plain else f", such as {', '.join(USUAL)}."
    raise RecipeError(f"licence: got {text!r}, expected a licence by the Hub's id{guess}")
