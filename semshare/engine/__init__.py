"""Running the model for many requests at once.

In reading order: `scheduler` (the step), `admission`, `generation`, `served`, `continuation`,
`prefill`, `repairs`, `retain` (what happens to a prompt), `tasks`, `executor`, `rows`, `adapter` (a
pass through the layers), `keeper` (what stays), `sampling`, `text`, `prompts`, `loading`.
"""
