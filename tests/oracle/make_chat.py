"""Chat templates and what Jinja2 makes of them: tests/golden/chat.json.

    python3 make_chat.py > chat.json          (jinja2 3.1.6 made the file that is kept)

The templates are written for this test, in the styles of the families that are in use; the
environment is the one that the `transformers` package renders them in.
"""
import json

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHATS = {
    'one': [('user', 'Hi')],
    'system': [('system', ' Be brief.\n'), ('user', 'Where is "it"?\n')],
    'turns': [('user', ' a '), ('assistant', '<think>no</think>b'), ('user', 'c')],
    'long': [('system', 's'), ('user', 'u'), ('assistant', 'a'), ('user', 'v'), ('assistant', 'é€'),
             ('user', 'w')],
    'wrong': [('assistant', 'first'), ('user', 'x')],
}
TEMPLATES = {
    'chatml': "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
              "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}"
              "{{ '<|im_start|>assistant\\n' }}{% endif %}",
    'chatml with a default system': """\
{% if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{% endif %}
{% for message in messages %}
    {% if loop.first and message.role == 'system' %}
        {{- '<|im_start|>system\\n' ~ message.content | trim ~ '<|im_end|>\\n' -}}
    {% else %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
    {% endif %}
{% endfor %}
{# the answer begins here #}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
""",
    'headers': "{{ bos_token }}{% for m in messages %}{% set content = '<|head|>' + m['role'] + "
               "'<|/head|>\\n\\n' + m['content'] | trim + '<|eot|>' %}{% if loop.index0 == 0 %}"
               "{% set content = '[first]' + content %}{% endif %}{{ content }}{% endfor %}"
               "{{ '<|head|>assistant<|/head|>\\n\\n' if add_generation_prompt else '' }}",
    'instruct': """\
{%- if messages[0]["role"] == "system" -%}
    {%- set system = messages[0]["content"].strip() -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system = false -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must alternate user/assistant!") }}
    {%- endif -%}
    {%- if message["role"] == "user" -%}
        {%- if loop.last and system is defined and system -%}
            {{- "<s>[INST] " + system + "\\n\\n" + message.content + " [/INST]" -}}
        {%- else -%}
            {{- "<s>[INST] " + message.content + " [/INST]" -}}
        {%- endif -%}
    {%- elif message["role"] == "assistant" -%}
        {{- " " + message["content"] + eos_token -}}
    {%- endif -%}
{%- endfor -%}
""",
    'namespace': """\
{%- set ns = namespace(last=-1, system='', many=false) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- if message.role == 'system' %}{% set ns.system = message.content %}{% endif %}
{%- set outer = 'inner' %}
{%- endfor %}
{%- if tools is defined and tools is not none %}{{ tools | tojson }}{% endif %}
{%- if messages | length > 2 and not ns.many %}[{{ messages | length }}]{% endif %}
{{ ns.system }}|{{ ns.last }}|{{ outer }}|{{ messages[-1].content }}
{%- for message in messages[ns.last:] %}
  {{ loop.index }}/{{ loop.length }}:{{ message['content'] }}{{ ', ' if not loop.last }}
{%- endfor %}
""",
    'tests and membership': """\
{% for m in messages %}
{% if 'tool_calls' in m or m.tool_calls is defined %}tools{% elif 'content' in m and m.content is string %}
{% if '</think>' in m.content %}thought {% endif %}{% if m.content is not string or m is not mapping %}?{% endif %}
{{ m.role.startswith('us') and m.content.endswith('x') or m.content.rstrip() }};
{% endif %}
  {%- if m.role not in 'system user' %} other{% endif %}
{% endfor %}
{% generation %}go{% endgeneration %}
""",
    'an unsupported branch that is not taken': "{% macro f(x) %}{{ x }}{% endmacro %}{% if tools %}"
              "{{ f(tools) | tojson(indent=4) }}{% for t in tools %}{{ t }}{% endfor %}{% endif %}"
              "{% for m in messages %}{{ m.content if m.content else f(m) }}{% endfor %}",
}


def raise_exception(message):
    raise TemplateError(message)


def main():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals['raise_exception'] = raise_exception
    out = []
    for name, source in TEMPLATES.items():
        source_for_jinja = source.replace('{% generation %}', '').replace('{% endgeneration %}', '')
        template = environment.from_string(source_for_jinja)
        for chat, turns in CHATS.items():
            messages = [{'role': r, 'content': c} for r, c in turns]
            row = {'name': f'{name}, {chat}', 'template': source, 'messages': messages}
            try:
                row['want'] = template.render(messages=messages, add_generation_prompt=True,
                                              bos_token='<s>', eos_token='</s>')
            except TemplateError as error:
                row['error'] = str(error)
            out.append(row)
    print(json.dumps(out, indent=1))


main()
