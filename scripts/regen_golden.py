"""Write the golden plan ids again, after a change of plans that is meant; the diff says which methods it touched."""

import json
import sys
from pathlib import Path

PLANS = Path(__file__).resolve().parents[1] / "tests" / "methods"
GOLDEN = PLANS / "golden_plans.json"
if not GOLDEN.exists():
    GOLDEN.write_text("{}")
sys.path.insert(0, str(PLANS))

from test_plans import discover_methods, plan_of

GOLDEN.write_text(json.dumps({name: plan_of(name).id for name in sorted(discover_methods())}, indent=1) + "\n")
print(f"wrote {GOLDEN.name}")
