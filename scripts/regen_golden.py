"""Write the golden plan ids again, after a change of plans that is meant; the diff says which methods it touched."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "methods"))

from test_plans import GOLDEN_FILE, discover_methods, plan_of

ids = {name: plan_of(name).id for name in sorted(discover_methods())}
GOLDEN_FILE.write_text(json.dumps(ids, indent=1) + "\n")
print(f"wrote {len(ids)} ids to {GOLDEN_FILE.name}")
