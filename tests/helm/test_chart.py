"""The chart, rendered and linted by Helm's own engine."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

CHART = Path(__file__).parents[2] / "helm" / "atomscope"
GIVEN: dict[str, Any] = {
    "database": {"url": "postgresql+psycopg://ann:db-password@db/atomscope"},
    "broker": {"url": "redis://:broker-password@broker:6379/0"},
    "store": {"uri": "s3://bucket/prefix", "accessKeyId": "key-id", "secretAccessKey": "store-password"},
    "server": {"secret": "0123456789abcdef0123456789abcdef"},
}
PASSWORDS = ("db-password", "broker-password", "store-password", "0123456789abcdef")
DEPLOYMENTS = ("api", "control", "worker")

Objects = dict[tuple[str, str], dict[str, Any]]


def values(**changes: Any) -> dict[str, Any]:
    """What must be given, with the top-level `changes` merged in one level deep."""
    merged = copy.deepcopy(GIVEN)
    for name, change in changes.items():
        merged[name] = {**merged.get(name, {}), **change} if isinstance(change, dict) else change
    return merged


def render(**changes: Any) -> Objects:
    """The objects of a release `audit` in the namespace `lab`, by kind and name without its prefix."""
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values(**changes), name="audit", namespace="lab")
    objects: Objects = {}
    for path, text in files.items():
        if path.endswith(".txt"):
            continue
        for item in yaml.safe_load_all(text):
            if item:
                name = item["metadata"]["name"].removeprefix("audit-atomscope").removeprefix("-")
                assert (item["kind"], name) not in objects
                objects[item["kind"], name] = item
    return objects


def pod(objects: Objects, part: str) -> dict[str, Any]:
    kind = "Job" if part == "migrate" else "Deployment"
    return objects[kind, part]["spec"]["template"]["spec"]


def container(objects: Objects, part: str) -> dict[str, Any]:
    (only,) = pod(objects, part)["containers"]
    return only


def environment(objects: Objects, part: str) -> dict[str, Any]:
    return {
        item["name"]: item.get("value", item.get("valueFrom")) for item in container(objects, part)["env"]
    }


def secrets_of(objects: Objects, part: str) -> set[str]:
    """Names of every Secret that a pod can read, by environment or by volume."""
    names = {
        item["valueFrom"]["secretKeyRef"]["name"]
        for item in container(objects, part)["env"]
        if "valueFrom" in item
    }
    names |= {
        item["secretRef"]["name"]
        for item in container(objects, part).get("envFrom", [])
        if "secretRef" in item
    }
    names |= {
        item["secret"]["secretName"] for item in pod(objects, part).get("volumes", []) if "secret" in item
    }
    return names


def refusal(**changes: Any) -> str:
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmError) as caught:
        chart.render(values(**changes), name="audit", namespace="lab")
    return str(caught.value)


def test_lint_finds_no_warning_and_no_error() -> None:
    report = helm.lint(CHART, values(), strict=True)
    assert report["errors"] == []
    assert [item for item in report["messages"] if item["severity"] > 1] == []


def test_defaults_make_every_part_and_nothing_optional() -> None:
    objects = render()
    assert set(objects) == {
        ("Deployment", "api"),
        ("Deployment", "control"),
        ("Deployment", "worker"),
        ("Service", ""),
        ("ConfigMap", ""),
        ("Secret", "database"),
        ("Secret", "broker"),
        ("Secret", "server"),
        ("Secret", "store"),
        ("Secret", "migrate"),
        ("ServiceAccount", ""),
        ("ServiceAccount", "worker"),
        ("PodDisruptionBudget", "api"),
        ("PodDisruptionBudget", "worker"),
        ("Job", "migrate"),
        *(("NetworkPolicy", part) for part in ("api", "control", "worker", "migrate")),
    }


@pytest.mark.parametrize("part", [*DEPLOYMENTS, "migrate"])
def test_containers_are_not_root_read_only_and_hold_no_token(part: str) -> None:
    objects = render()
    assert pod(objects, part)["automountServiceAccountToken"] is False
    security = pod(objects, part)["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == 10001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(objects, part)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {item["mountPath"]: item["name"] for item in container(objects, part)["volumeMounts"]}
    written = [item["name"] for item in pod(objects, part)["volumes"] if "emptyDir" in item]
    assert [mounts["/tmp"]] == written  # noqa: S108  (a read-only root needs one place to write)
    assert container(objects, part)["args"] == [part]


@pytest.mark.parametrize("part", DEPLOYMENTS)
def test_every_deployment_has_three_probes(part: str) -> None:
    one = container(render(), part)
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= one.keys()
    if part == "api":
        assert one["livenessProbe"]["httpGet"]["path"] == "/livez"
        assert one["readinessProbe"]["httpGet"]["path"] == "/readyz"


@pytest.mark.parametrize("part", DEPLOYMENTS)
def test_selectors_match_their_own_pods_and_no_others(part: str) -> None:
    objects = render()
    selector = objects["Deployment", part]["spec"]["selector"]["matchLabels"]
    matched = [
        name
        for name in DEPLOYMENTS
        if selector.items() <= objects["Deployment", name]["spec"]["template"]["metadata"]["labels"].items()
    ]
    assert matched == [part]


def test_workers_of_two_versions_never_run_together() -> None:
    strategies = {name: render()["Deployment", name]["spec"].get("strategy") for name in DEPLOYMENTS}
    assert strategies["worker"] == {"type": "Recreate"}
    assert strategies["api"] is None  # replaced one by one


def test_the_worker_is_given_the_broker_and_the_store_alone() -> None:
    objects = render()
    assert secrets_of(objects, "worker") == {"audit-atomscope-broker", "audit-atomscope-store"}
    names = set(environment(objects, "worker"))
    assert not names & {"ATOMSCOPE_DATABASE_URL", "ATOMSCOPE_SECRET_FILE", "ATOMSCOPE_API_KEY"}
    assert "envFrom" not in container(objects, "worker")
    assert pod(objects, "worker")["serviceAccountName"] == "audit-atomscope-worker"


@pytest.mark.parametrize("part", ["api", "control"])
def test_the_service_is_given_all_that_its_settings_need(part: str) -> None:
    from atomscope_service.settings import load_settings

    objects = render(server={"settings": {"ATOMSCOPE_MAX_ROWS": "500"}, "baseUrl": "https://audits.example"})
    environ = {name: str(item) for name, item in objects["ConfigMap", ""]["data"].items()}
    for name, value in environment(objects, part).items():
        if isinstance(value, dict):
            reference = value["secretKeyRef"]
            secret = reference["name"].removeprefix("audit-atomscope-")
            environ[name] = objects["Secret", secret]["stringData"][reference["key"]]
        else:
            environ[name] = value
    settings = load_settings(environ)
    assert settings.database_url == GIVEN["database"]["url"]
    assert settings.broker_url == GIVEN["broker"]["url"]
    assert settings.store == "s3://bucket/prefix"
    assert (settings.host, settings.port) == ("0.0.0.0", 8321)  # noqa: S104
    assert settings.max_rows == 500
    assert settings.base_url == "https://audits.example"
    (mount,) = (item for item in container(objects, part)["volumeMounts"] if item["name"] == "secret")
    assert settings.secret_file.parent == Path(mount["mountPath"])
    assert mount["readOnly"] is True


def test_passwords_stand_in_secrets_and_nowhere_else() -> None:
    for (kind, _), item in render().items():
        if kind != "Secret":
            text = yaml.safe_dump(item)
            assert not [password for password in PASSWORDS if password in text]


def test_existing_secrets_go_before_written_ones() -> None:
    objects = render(
        database={"existingSecret": "my-db", "existingSecretKey": "dsn"},
        broker={"existingSecret": "my-broker", "existingSecretKey": "address"},
        store={"existingSecret": "my-store"},
        server={"existingSecret": "my-server", "existingSecretKey": "pepper"},
    )
    assert not [name for kind, name in objects if kind == "Secret"]
    env = environment(objects, "api")
    assert env["ATOMSCOPE_DATABASE_URL"] == {"secretKeyRef": {"name": "my-db", "key": "dsn"}}
    assert env["ATOMSCOPE_BROKER_URL"] == {"secretKeyRef": {"name": "my-broker", "key": "address"}}
    assert env["AWS_ACCESS_KEY_ID"] == {"secretKeyRef": {"name": "my-store", "key": "access-key-id"}}
    assert secrets_of(objects, "control") == {"my-db", "my-broker", "my-store", "my-server"}
    (volume,) = (item for item in pod(objects, "api")["volumes"] if item["name"] == "secret")
    assert volume["secret"]["items"] == [{"key": "pepper", "path": "secret"}]
    assert secrets_of(objects, "worker") == {"my-broker", "my-store"}
    assert secrets_of(objects, "migrate") == {"my-db"}


def test_workers_may_have_narrower_credentials() -> None:
    objects = render(
        broker={"workerExistingSecret": "worker-broker"}, store={"workerExistingSecret": "worker-store"}
    )
    assert secrets_of(objects, "worker") == {"worker-broker", "worker-store"}
    assert "audit-atomscope-broker" in secrets_of(objects, "api")


def test_pods_with_an_identity_of_their_own_hold_no_store_credentials() -> None:
    objects = render(
        store={"accessKeyId": "", "secretAccessKey": ""},
        serviceAccount={"workerAnnotations": {"example.com/role": "audit-worker"}},
    )
    assert ("Secret", "store") not in objects
    assert "AWS_ACCESS_KEY_ID" not in environment(objects, "worker")
    account = objects["ServiceAccount", "worker"]
    assert account["metadata"]["annotations"] == {"example.com/role": "audit-worker"}
    assert account["automountServiceAccountToken"] is False


def test_store_settings_reach_service_and_worker() -> None:
    objects = render(
        store={
            "endpointUrl": "http://minio:9000",
            "region": "eu",
            "addressingStyle": "path",
            "checksums": "when_supported",
        }
    )
    for part in DEPLOYMENTS:
        env = environment(objects, part)
        assert env["ATOMSCOPE_S3_ENDPOINT_URL"] == "http://minio:9000"
        assert env["ATOMSCOPE_S3_REGION"] == "eu"
        assert env["ATOMSCOPE_S3_ADDRESSING_STYLE"] == "path"
        assert env["ATOMSCOPE_S3_CHECKSUMS"] == "when_supported"


def test_gpu_workers_ask_for_the_device_and_keep_their_limits() -> None:
    assert "nvidia.com/gpu" not in container(render(), "worker")["resources"]["limits"]
    objects = render(
        worker={
            "gpu": {"enabled": True},
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "threads": 6,
        }
    )
    assert container(objects, "worker")["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": 1}
    assert pod(objects, "worker")["nodeSelector"] == {"pool": "gpu"}
    assert pod(objects, "worker")["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert environment(objects, "worker")["OMP_NUM_THREADS"] == "6"


def test_ingress_leads_to_the_service() -> None:
    ingress = render(
        api={"ingress": {"enabled": True, "className": "nginx", "host": "audits.example", "tlsSecret": "tls"}}
    )["Ingress", ""]["spec"]
    assert ingress["ingressClassName"] == "nginx"
    assert ingress["tls"] == [{"hosts": ["audits.example"], "secretName": "tls"}]
    (rule,) = ingress["rules"]
    assert rule["http"]["paths"][0]["backend"]["service"] == {
        "name": "audit-atomscope",
        "port": {"name": "http"},
    }


def test_keda_scales_workers_on_the_pipeline_queue() -> None:
    from atomscope.types.work import PIPELINE_QUEUE

    objects = render(
        worker={"keda": {"enabled": True, "address": "broker:6379", "authenticationRef": "auth"}}
    )
    assert "replicas" not in objects["Deployment", "worker"]["spec"]
    scaled = objects["ScaledObject", "worker"]["spec"]
    assert scaled["scaleTargetRef"] == {"name": "audit-atomscope-worker"}
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["listName"] == PIPELINE_QUEUE
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert trigger["authenticationRef"] == {"name": "auth"}


def test_the_migration_runs_before_install_and_upgrade_with_what_it_needs() -> None:
    objects = render()
    job, secret = objects["Job", "migrate"], objects["Secret", "migrate"]
    for item in (job, secret):
        assert item["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    weights = [int(item["metadata"]["annotations"]["helm.sh/hook-weight"]) for item in (secret, job)]
    assert weights == sorted(weights)
    assert secrets_of(objects, "migrate") == {"audit-atomscope-migrate"}
    assert pod(objects, "migrate")["restartPolicy"] == "Never"
    without = render(migration={"enabled": False})
    assert not [name for kind, name in without if "migrate" in name and kind != "NetworkPolicy"]


def egress_ports(objects: Objects, part: str) -> set[int]:
    rules = objects["NetworkPolicy", part]["spec"]["egress"]
    return {port["port"] for rule in rules for port in rule["ports"]}


def test_workers_reach_the_broker_the_store_and_names_only() -> None:
    objects = render()
    assert egress_ports(objects, "worker") == {53, 6379, 443}
    assert egress_ports(objects, "api") == {53, 6379, 443, 5432}
    assert egress_ports(objects, "migrate") == {53, 5432}
    for part in ("worker", "control", "migrate"):
        assert objects["NetworkPolicy", part]["spec"]["ingress"] == []
        assert set(objects["NetworkPolicy", part]["spec"]["policyTypes"]) == {"Ingress", "Egress"}


def test_an_endpoint_for_labels_is_the_workers_alone_and_its_key_a_secret() -> None:
    given = {"url": "https://models.example/v1", "model": "small", "key": "sk-label-key"}
    objects = render(worker={"labels": given}, networkPolicy={"labels": {"port": 8443}})
    env = environment(objects, "worker")
    assert env["ATOMSCOPE_LABEL_URL"] == given["url"]
    assert env["ATOMSCOPE_LABEL_MODEL"] == "small"
    assert env["ATOMSCOPE_LABEL_KEY"] == {"secretKeyRef": {"name": "audit-atomscope-labels", "key": "key"}}
    assert objects["Secret", "labels"]["stringData"] == {"key": "sk-label-key"}
    assert [kind for (kind, _), item in objects.items() if "sk-label-key" in yaml.safe_dump(item)] == [
        "Secret"
    ]
    assert egress_ports(objects, "worker") == {53, 6379, 443, 8443}
    for part in ("api", "control"):
        assert not [name for name in environment(objects, part) if "LABEL" in name]
        assert 8443 not in egress_ports(objects, part)


def test_the_key_of_labels_may_be_in_a_secret_of_its_own_or_left_out() -> None:
    given = {"url": "http://models:8000/v1", "model": "small"}
    existing = render(worker={"labels": given | {"existingSecret": "mine", "existingSecretKey": "token"}})
    reference = environment(existing, "worker")["ATOMSCOPE_LABEL_KEY"]
    assert reference == {"secretKeyRef": {"name": "mine", "key": "token"}}
    assert ("Secret", "labels") not in existing
    assert "ATOMSCOPE_LABEL_KEY" not in environment(render(worker={"labels": given}), "worker")
    assert not [name for name in environment(render(), "worker") if "LABEL" in name]


def test_network_peers_can_be_narrowed_or_the_policies_left_out() -> None:
    peer = [{"ipBlock": {"cidr": "10.1.0.0/16"}}]
    front = [{"namespaceSelector": {"matchLabels": {"name": "front"}}}]
    objects = render(networkPolicy={"apiFrom": front, "store": {"to": peer, "port": 9000}})
    rules = objects["NetworkPolicy", "worker"]["spec"]["egress"]
    assert {"ports": [{"protocol": "TCP", "port": 9000}], "to": peer} in rules
    assert objects["NetworkPolicy", "api"]["spec"]["ingress"][0]["from"] == front
    assert not [kind for kind, _ in render(networkPolicy={"enabled": False}) if kind == "NetworkPolicy"]


def test_images_by_tag_and_by_digest() -> None:
    digest = "sha256:" + "a" * 64
    objects = render(
        image={
            "service": {"repository": "example.com/service", "tag": "v2"},
            "worker": {"repository": "example.com/worker", "digest": digest},
            "pullSecrets": [{"name": "pull"}],
        }
    )
    assert container(objects, "api")["image"] == "example.com/service:v2"
    assert container(objects, "worker")["image"] == f"example.com/worker@{digest}"
    assert pod(objects, "worker")["imagePullSecrets"] == [{"name": "pull"}]


def test_disruption_budgets_and_accounts_can_be_left_out() -> None:
    objects = render(
        api={"disruptionBudget": {"enabled": False}},
        worker={"disruptionBudget": {"enabled": False}},
        serviceAccount={"create": False, "name": "mine", "workerName": "theirs"},
    )
    assert not [kind for kind, _ in objects if kind in {"PodDisruptionBudget", "ServiceAccount"}]
    assert pod(objects, "api")["serviceAccountName"] == "mine"
    assert pod(objects, "worker")["serviceAccountName"] == "theirs"


def test_a_changed_setting_restarts_the_service() -> None:
    def checksum(objects: Objects) -> str:
        return objects["Deployment", "api"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum(render()) != checksum(render(server={"settings": {"ATOMSCOPE_MAX_ROWS": "5"}}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"replicas": 3}, "replicas"),
        ({"api": {"replica": 2}}, "replica"),
        ({"api": {"replicas": "two"}}, "replicas"),
        ({"worker": {"gpu": {"enabled": True, "count": 0}}}, "count"),
        ({"store": {"uri": "file:///data"}}, "uri"),
        ({"store": {"uri": "s3://bucket", "checksums": "sometimes"}}, "checksums"),
        ({"store": {"uri": "s3://bucket", "secretAccessKey": ""}}, "secretAccessKey"),
        ({"database": {"url": "sqlite:///file.db"}}, "url"),
        ({"broker": {"url": "amqp://broker"}}, "url"),
        ({"server": {"secret": "short"}}, "secret"),
        ({"server": {"settings": {"ATOMSCOPE_DATABASE_URL": "postgresql://x"}}}, "ATOMSCOPE_DATABASE_URL"),
        ({"worker": {"settings": {"ATOMSCOPE_DATABASE_URL": "postgresql://x"}}}, "ATOMSCOPE_DATABASE_URL"),
        ({"worker": {"settings": {"ATOMSCOPE_SECRET_FILE": "/secret"}}}, "ATOMSCOPE_SECRET_FILE"),
        ({"worker": {"settings": {"ATOMSCOPE_LABEL_KEY": "sk-x"}}}, "ATOMSCOPE_LABEL_KEY"),
        ({"worker": {"labels": {"url": "https://user:password@models.example/v1"}}}, "url"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"networkPolicy": {"store": {"port": 70000}}}, "port"),
    ],
)
def test_the_schema_refuses_wrong_values_by_name(changes: dict[str, Any], named: str) -> None:
    assert named in refusal(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"database": {"url": ""}}, "give database.url or database.existingSecret"),
        ({"broker": {"url": ""}}, "give broker.url or broker.existingSecret"),
        ({"server": {"secret": ""}}, "give server.secret or server.existingSecret"),
        ({"api": {"ingress": {"enabled": True}}}, "give api.ingress.host"),
        ({"worker": {"keda": {"enabled": True}}}, "give worker.keda.address"),
        ({"worker": {"labels": {"url": "https://models.example/v1"}}}, "give worker.labels.model"),
    ],
)
def test_what_must_be_given_is_asked_for(changes: dict[str, Any], message: str) -> None:
    assert message in refusal(**changes)


def test_every_value_is_in_the_schema_and_every_object_closed() -> None:
    import json

    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def walk(value: dict[str, Any], part: dict[str, Any], path: str) -> None:
        if "properties" not in part:
            return
        assert part["additionalProperties"] is False, path
        assert value.keys() <= part["properties"].keys(), path
        for name, item in value.items():
            if isinstance(item, dict):
                walk(item, part["properties"][name], f"{path}.{name}")

    walk(defaults, schema, "values")


def test_notes_say_how_to_get_a_key_and_warn_of_unreachable_links() -> None:
    with helm.Chart.load(CHART) as chart:
        notes = chart.render(values(), name="audit", namespace="lab")["atomscope/templates/NOTES.txt"]
    assert "keys bootstrap" in notes
    assert "server.baseUrl is not set" in notes
