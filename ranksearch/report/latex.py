"""The front of a study as a LaTeX table, for papers."""

from __future__ import annotations

from typing import Any

from ranksearch.report.data import Facts

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", '"': "''",
}  # fmt: skip


def escaped(text: str) -> str:
    """Text as LaTeX prints it: no character of it is a command."""
    return " ".join("".join(_SPECIAL.get(letter, letter) for letter in text).split())


def front_table(facts: Facts) -> str:
    """The networks on the front, cheapest first, then the dense network, as a ``table`` for the package booktabs: every metric and its
    change against the dense network, every cost as a share of the dense network's, in percent."""
    networks: Any = facts.networks
    rows = [*networks[networks["on_front"] & ~networks["is_dense"]].to_dict("records"), *networks[networks["is_dense"]].to_dict("records")]
    metrics = list(facts.directions)
    shared = [cost for cost in facts.costs if cost.dense]
    measured = [name for metric in metrics for name in (escaped(metric), r"$\Delta$")]
    header = ["network", *measured, *(rf"{escaped(cost.label)} (\%)" for cost in shared)]
    lines = [_line(["dense" if row["is_dense"] else rf"\texttt{{{row['id']}}}", *_values(row, metrics, shared)]) for row in rows]
    if len(lines) > 1 and rows[-1]["is_dense"]:
        lines.insert(len(lines) - 1, r"\midrule")
    caption = f"Networks on the front of {facts.study} at fidelity {facts.fidelity}; changes are against the dense network."
    return "\n".join([
        "% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{escaped(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", _line(header), r"\midrule", *lines, r"\bottomrule",
        r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def _values(row: dict[str, Any], metrics: list[str], shared: list[Any]) -> list[str]:
    measured = [text for name in metrics for text in (_number(row[name], ".4f"), _number(row[f"{name}_delta"], "+.4f"))]
    return [*measured, *(_number(100 * row[f"{cost.name}_rel"], ".1f") for cost in shared)]


def _number(value: float, form: str) -> str:
    return "--" if value != value else f"${value:{form}}$"


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
