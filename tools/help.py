"""Writes what follows from the schema, locales/en and the table on every help page: `python tools/help.py`.

It reads tests/data/object_info.json, and the Chinese of the tooltips from locales/zh, and names what is not translated
there. A new node gets its two pages, whose text is left to write. With --check it writes nothing and fails where a file
is not what it would write.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
HEADS = {
    "en": ("parameter", "type", "default", "range", "effect"),
    "zh": ("参数", "类型", "默认值", "范围", "作用"),
}
YES = {"en": ("on", "off", "optional"), "zh": ("开", "关", "可选")}


def english(schemas: dict) -> dict:
    """locales/en/nodeDefs.json: what the schema says itself."""
    nodes = {}
    for node, values in schemas.items():
        inputs = {
            name: {"name": options.get("display_name", name), "tooltip": options["tooltip"]}
            for name, _, options, _ in inputs_of(values)
        }
        outputs = {}
        for number, (name, tooltip) in enumerate(zip(values["output_name"], values["output_tooltips"], strict=True)):
            outputs[str(number)] = {"name": name} | ({"tooltip": tooltip} if tooltip else {})
        names = {"display_name": values["display_name"], "description": values["description"]}
        nodes[node] = names | {"inputs": inputs, "outputs": outputs}
    return nodes


def inputs_of(values: dict) -> list[tuple[str, str, dict, bool]]:
    """(name, type, options, optional) in the node's order."""
    found = []
    for part in ("required", "optional"):
        for name, (of, options) in values["input"].get(part, {}).items():
            found.append((name, "COMBO" if isinstance(of, list) else of, options, part == "optional"))
    return found


def number(value, lang: str) -> str:
    if isinstance(value, bool):
        return YES[lang][0 if value else 1]
    if value == 2**64 - 1:
        return "2⁶⁴ − 1"
    return f"{value:g}".replace("-", "−") if isinstance(value, float | int) else f"`{value}`"


def table(values: dict, texts: dict, lang: str) -> str:
    rows = [HEADS[lang], ("---",) * 5]
    for name, of, options, optional in inputs_of(values):
        default = options["default"] if "default" in options else (options.get("options") or [None])[0]
        extent = "-"
        if "min" in options:
            extent = f"{number(options['min'], lang)} … {number(options['max'], lang)}"
        elif options.get("options"):
            extent = ", ".join(f"`{option}`" for option in options["options"])
        shown = "-" if default is None else number(default, lang)
        label = f"**{texts[name]['name']}**" + (f" (`{name}`)" if texts[name]["name"] != name else "")
        rows.append((label, of + (f", {YES[lang][2]}" if optional else ""), shown, extent, texts[name]["tooltip"]))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def untranslated(english: dict, chinese: dict) -> list[str]:
    """What locales/zh lacks."""
    found = []
    for node, texts in english.items():
        inputs = chinese.get(node, {}).get("inputs", {})
        found += [f"{node}.{name}" for name in texts["inputs"] if "tooltip" not in inputs.get(name, {})]
        if node not in chinese:
            found.append(node)
    return found


def files() -> dict[str, str]:
    """Every file by its path in the pack."""
    schemas = json.loads((PACK / "tests" / "data" / "object_info.json").read_text())
    texts = {"en": english(schemas), "zh": json.loads((PACK / "locales" / "zh" / "nodeDefs.json").read_text())}
    if missing := untranslated(texts["en"], texts["zh"]):
        sys.exit(f"locales/zh/nodeDefs.json lacks a translation of {', '.join(missing)}: add it first")
    made = {"locales/en/nodeDefs.json": json.dumps(texts["en"], indent=2, ensure_ascii=False) + "\n"}
    for node, values in schemas.items():
        for lang, name in (("en", f"web/docs/{node}.md"), ("zh", f"web/docs/{node}/zh.md")):
            shown = texts[lang][node]
            page = f"# {shown['display_name']}\n\n{shown['description']}\n\n<!-- parameters --><!-- end -->\n"
            if (PACK / name).exists():
                page = (PACK / name).read_text()
            between = f"<!-- parameters -->\n\n{table(values, shown['inputs'], lang)}\n\n<!-- end -->"
            made[name], count = re.subn("<!-- parameters -->.*?<!-- end -->", lambda _: between, page, flags=re.S)  # noqa: B023
            assert count == 1, f"{name} has no place for its table"
    return made


if __name__ == "__main__":
    made = files()
    stale = [name for name, text in made.items() if not (PACK / name).exists() or (PACK / name).read_text() != text]
    if "--check" not in sys.argv:
        for name in stale:
            (PACK / name).parent.mkdir(exist_ok=True)
            (PACK / name).write_text(made[name])
    print("\n".join(stale))
    sys.exit(bool(stale) and "--check" in sys.argv)
