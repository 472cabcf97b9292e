"""Config files: Serve accepts them unchanged, our part of them is strict, and errors name the mistake and a remedy."""

import pytest
import yaml
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from configs.schema import STAGES, AppConfig, IceServer, LipSyncConfig
from configs.serve_file import (
    DEPLOYMENT_KEYS,
    FOLDER,
    ConfigFileError,
    config_path,
    deployment_of,
    gpu_stages,
    load_serve_config,
)
from deployments.common.stage import parse_config
from models.errors import ConfigError

FILES = ["demo", "gpu", "node", "cluster"]


@pytest.mark.parametrize("name", FILES)
def test_serve_accepts_the_file_unchanged(name):
    schema = ServeDeploySchema.model_validate(load_serve_config(name))
    assert [d.name for d in schema.applications[0].deployments] == [name for name in STAGES if name != "Recognize"]


@pytest.mark.parametrize("name", FILES)
def test_every_stage_states_its_resources_and_limits(name):
    for deployment in load_serve_config(name)["applications"][0]["deployments"]:
        assert {"ray_actor_options", "max_ongoing_requests", "max_queued_requests"} <= deployment.keys()
        assert {"health_check_period_s", "graceful_shutdown_timeout_s"} <= deployment.keys()
        assert deployment["backpressure_config"] == {"status_code": 429, "retry_after_s": 2}
        assert "autoscaling_config" in deployment or deployment["name"] == "Ingress"


@pytest.mark.parametrize("name", FILES)
def test_autoscaling_reacts_in_seconds(name):
    for deployment in load_serve_config(name)["applications"][0]["deployments"]:
        scaling = deployment.get("autoscaling_config", {})
        assert scaling.get("metrics_interval_s", 1) <= 2
        assert scaling.get("look_back_period_s", 3) <= 4
        assert scaling.get("upscale_delay_s", 1) <= 1


@pytest.mark.parametrize("name", ["gpu", "node", "cluster"])
def test_one_replica_of_every_stage_fits_one_gpu(name):
    deployments = load_serve_config(name)["applications"][0]["deployments"]
    assert sum(d["ray_actor_options"].get("num_gpus", 0) for d in deployments) <= 1.0


def edited(tmp_path, edit):
    config = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    edit(config)
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_a_misspelt_key_is_reported_with_the_nearest_one(tmp_path):
    path = edited(tmp_path, lambda c: deployment_of(c, "LipSync")["user_config"].update(batchsize=4))
    with pytest.raises(ConfigFileError, match=r"LipSync\.user_config.*'batchsize': did you mean 'batch_size'"):
        load_serve_config(path)


def test_a_value_out_of_range_is_reported_with_its_key(tmp_path):
    path = edited(tmp_path, lambda c: deployment_of(c, "Enhance")["user_config"].update(strength=1.5))
    with pytest.raises(ConfigFileError, match=r"strength.*less than or equal to 1"):
        load_serve_config(path)


def test_an_unknown_stage_is_reported_with_the_known_ones(tmp_path):
    path = edited(tmp_path, lambda c: deployment_of(c, "Lipsink"))
    with pytest.raises(ConfigFileError, match="no stage 'Lipsink'. Stages are TTS, AudioFeatures, LipSync"):
        load_serve_config(path)


def test_a_misspelt_limit_of_a_stage_is_refused_although_serve_would_ignore_it(tmp_path):
    path = edited(tmp_path, lambda c: deployment_of(c, "TTS").update(max_queued_request=4))
    with pytest.raises(ConfigFileError, match="TTS: unknown key 'max_queued_request': did you mean 'max_queued_req"):
        load_serve_config(path)
    assert set(DEPLOYMENT_KEYS) == DeploymentSchema.model_fields.keys()


def test_args_are_strict(tmp_path):
    path = edited(tmp_path, lambda c: c["applications"][0]["args"].update(enhanse=True))
    with pytest.raises(ConfigFileError, match="'enhanse': did you mean 'enhance'"):
        load_serve_config(path)


def test_an_unknown_file_is_reported_with_the_known_ones():
    with pytest.raises(ConfigFileError, match="no config file 'dmo'.*cluster, demo, gpu"):
        config_path("dmo")


def test_broken_yaml_is_reported(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("applications: [")
    with pytest.raises(ConfigFileError, match="not valid YAML"):
        load_serve_config(str(path))


def test_a_running_stage_refuses_the_same_keys_as_the_file_check():
    with pytest.raises(ConfigError, match=r"LipSync\.user_config.*did you mean 'batch_size'") as caught:
        parse_config("LipSync", {"batch_sise": 4})
    assert caught.value.remedy


def test_the_stages_that_need_a_gpu_are_known():
    assert gpu_stages(load_serve_config("demo")) == [] and "LipSync" in gpu_stages(load_serve_config("gpu"))


def test_the_defaults_are_the_embedded_models():
    assert LipSyncConfig().unet_weights == "models/embedded/musetalk/unet.safetensors"
    assert LipSyncConfig().engine == "openvino"


def test_the_section_of_a_stage_that_args_leave_out_is_removed(tmp_path):
    path = edited(tmp_path, lambda c: c["applications"][0]["args"].update(enhance=False))
    names = [deployment["name"] for deployment in load_serve_config(path)["applications"][0]["deployments"]]
    assert names == [name for name in STAGES if name not in ("Enhance", "Recognize")]


@pytest.mark.parametrize(
    "text", ["", "[]", "applications: []", "applications: {}", "applications: [1]", "applications: graph"]
)
def test_a_file_without_applications_is_refused(tmp_path, text):
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(ConfigFileError, match=r"other\.yaml: a Serve config file needs a list named 'applications'"):
        load_serve_config(str(tmp_path / "other.yaml"))


@pytest.mark.parametrize("text", ["applications: [{deployments: {TTS: 1}}]", "applications: [{deployments: [TTS]}]"])
def test_deployments_must_be_a_list_of_stages(tmp_path, text):
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(ConfigFileError, match="'deployments' must be a list of stages"):
        load_serve_config(str(tmp_path / "other.yaml"))


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "clip.yaml").write_bytes(b"\x00\x00\x00\x20ftypisom\xff\xfe")
    with pytest.raises(ConfigFileError, match="not valid YAML"):
        load_serve_config(str(tmp_path / "clip.yaml"))


@pytest.mark.parametrize(
    "options",
    [
        "num_replicas: 2",
        "num_replicas: auto",
        "autoscaling_config: {min_replicas: 1, max_replicas: 2}",
        "{num_replicas: auto, autoscaling_config: {max_replicas: 3}}",
    ],
)
def test_chat_must_have_one_replica(tmp_path, options):
    entry = options if options.startswith("{") else f"{{{options}}}"
    path = tmp_path / "many.yaml"
    chat = {"name": "Chat", **yaml.safe_load(entry)}
    path.write_text(yaml.safe_dump({"applications": [{"name": "warmtalk", "deployments": [chat]}]}))
    with pytest.raises(ConfigFileError, match="Chat must have exactly one replica"):
        load_serve_config(str(path))
    for one in ({"num_replicas": 1}, {"autoscaling_config": {"max_replicas": 1}}, {}):
        path.write_text(yaml.safe_dump({"applications": [{"deployments": [{"name": "Chat", **one}]}]}))
        assert load_serve_config(str(path))


@pytest.mark.parametrize("name", FILES)
def test_the_commented_section_of_recognize_is_valid_when_uncommented(tmp_path, name):
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    begin = next(k for k, line in enumerate(lines) if line.startswith("  # - name: Recognize"))
    end = next(k for k, line in enumerate(lines) if k > begin and not line.startswith("  #"))
    lines[begin:end] = [line.replace("  # ", "  ", 1) for line in lines[begin:end]]
    text = "\n".join(lines)
    path = tmp_path / "heard.yaml"
    path.write_text(text)
    assert "Recognize" not in [d["name"] for d in load_serve_config(str(path))["applications"][0]["deployments"]]
    path.write_text(text.replace("    # recognize: true", "    recognize: true"))
    config = load_serve_config(str(path))
    section = deployment_of(config, "Recognize")
    assert [d["name"] for d in config["applications"][0]["deployments"]] == list(STAGES)
    assert section["user_config"]["options"]["weights"] == "weights/whisper-tiny.en"
    assert section["backpressure_config"]["status_code"] == 429 and "autoscaling_config" in section
    shares = [d["ray_actor_options"].get("num_gpus", 0) for d in config["applications"][0]["deployments"]]
    assert sum(shares) <= 1.0 + 1e-9
    ServeDeploySchema.model_validate(config)


@pytest.mark.parametrize("model", [AppConfig, IceServer, *STAGES.values()])
def test_every_setting_has_a_description_of_whole_sentences(model):
    for name, field in model.model_fields.items():
        description = field.description or ""
        assert description[:1].isupper() or description[:1] in "`0", f"{model.__name__}.{name}: {description!r}"
        assert description.endswith(".") and len(description) >= 20, f"{model.__name__}.{name}: {description!r}"


def test_stages_that_share_a_setting_have_the_same_default():
    """An avatar's latents belong to one VAE, and all stages read the same folder."""
    for key in ("avatars_dir", "vae_dir", "unet_config", "unet_weights"):
        defaults = {model.model_fields[key].default for model in STAGES.values() if key in model.model_fields}
        assert len(defaults) == 1, key
