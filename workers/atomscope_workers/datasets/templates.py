"""Chat templates by name, for base models whose tokenizer has none: what trainers call by these names.

Each marks what the assistant says through its end of turn as generated, and that alone. `docs/data.md` shows
what they render. A turn that a template has no place for is refused by it.
"""

from __future__ import annotations

NAMED_TEMPLATES = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message.role + '\n' }}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}"
        "{{ '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{% if message.role not in ['system', 'user', 'assistant'] %}"
        "{{ raise_exception('llama3 has no role ' + message.role) }}{% endif %}"
        "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content.strip() + '<|eot_id|>' }}{% endgeneration %}"
        "{% else %}{{ message.content.strip() + '<|eot_id|>' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}"
        "{{ '<start_of_turn>model\n' }}"
        "{% generation %}{{ message.content.strip() + '<end_of_turn>' }}{% endgeneration %}"
        "{% elif message.role == 'user' %}"
        "{{ '<start_of_turn>user\n' + message.content.strip() + '<end_of_turn>' }}"
        "{% else %}{{ raise_exception('gemma has no role ' + message.role) }}{% endif %}"
        "{{ '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}"
        "{% if message.role not in ['system', 'user', 'assistant'] %}"
        "{{ raise_exception('zephyr has no role ' + message.role) }}{% endif %}"
        "{{ '<|' + message.role + '|>\n' }}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content + eos_token }}{% endgeneration %}"
        "{% else %}{{ message.content + eos_token }}{% endif %}"
        "{{ '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "alpaca": (
        "{{ bos_token }}"
        "{% if messages[0].role != 'system' %}"
        "{{ 'Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n' }}{% endif %}"
        "{% for message in messages %}"
        "{% if message.role == 'system' and loop.first %}{{ message.content + '\n\n' }}"
        "{% elif message.role == 'user' %}"
        "{{ '### Instruction:\n' + message.content + '\n\n### Response:\n' }}"
        "{% elif message.role == 'assistant' %}"
        "{% generation %}{{ message.content + eos_token }}{% endgeneration %}{{ '\n\n' }}"
        "{% else %}{{ raise_exception('alpaca has no role ' + message.role + ' here') }}{% endif %}"
        "{% endfor %}"
    ),
}
