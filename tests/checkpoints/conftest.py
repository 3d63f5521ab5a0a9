import checkpoint_folders as folders
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def camera_weights():
    """Weights with a whole ResNet-18, in float16 to keep the files small."""
    return folders.weights(torch.float16, cameras=folders.CAMERAS, env=False)


@pytest.fixture(scope="session")
def camera_model_file(tmp_path_factory, camera_weights):
    """`model.safetensors` with a backbone, written once and linked into every folder."""
    folder = tmp_path_factory.mktemp("backbone")
    folders.write_weights(folder, camera_weights)
    return folder / "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A healthy LeRobot 0.4.4 checkpoint without cameras."""
    return folders.write_processors_layout(tmp_path / "pretrained_model")


@pytest.fixture
def camera_folder(tmp_path, camera_model_file):
    """A healthy LeRobot 0.4.4 checkpoint with two cameras."""
    return folders.write_processors_layout(
        tmp_path / "with_cameras",
        cameras=folders.CAMERAS,
        env=False,
        model_file=camera_model_file,
    )
