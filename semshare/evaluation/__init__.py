"""Speed, fidelity and facts, measured on real texts against the same model's full prefill.

`run_ttft` (bench), `run_facts` (facts) and `run_demo` (demo) each return one JSON-ready record.
"""
