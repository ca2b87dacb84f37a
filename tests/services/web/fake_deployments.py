"""The methods with which web finds and deploys models."""

import msgspec

from shared import errors
from shared.api import deployments, model_search, models
from shared.api.deployments import CopyState, Deployment, ModelCopy
from shared.api.inference import Fit
from shared.api.method import Nothing
from shared.api.model_search import FoundModel, FoundModels, MachineFit
from shared.api.models import ModelVersion
from shared.config_documents import CatalogDocument, DeploymentDocument
from shared.types import Credential, ModelName, NodeId

QWEN = CatalogDocument(
    source="hf:Qwen/Qwen3-8B-GGUF:Q4_K_M", parameters=8 * 10**9, quantizations=("Q4_K_M",), license="Apache-2.0", tools=True
)
FITS = (
    MachineFit(worker=NodeId("ULARGE0001"), fit=Fit.YES, detail="all layers on its GPU"),
    MachineFit(worker=NodeId("USMALL0001"), fit=Fit.NO, detail="it needs 5.1 GiB, and models may use 4.0 GiB"),
)
FOUND = FoundModel(name="qwen3:8b", origin="catalog", model=QWEN, size=5_037_000_000, fits=FITS)


class FakeDeployments:
    def __init__(self) -> None:
        super().__init__()
        self.found = FoundModels((FOUND,))
        self.deployments: dict[ModelName, DeploymentDocument] = {}
        self.copies: tuple[ModelCopy, ...] = (
            ModelCopy(NodeId("ULARGE0001"), CopyState.COMING, ModelName("qwen3:8b"), 3 << 30, 5 << 30, 12 << 20),
        )

        self.pushed: tuple[ModelVersion, ...] = ()
        #: What was asked for.
        self.changes: list[models.PromoteModel | models.RollbackModel | models.WithdrawModel | models.RetireModelVersion] = []

    def _list_model_versions(self, _request: models.ListModelVersions, _: Credential | None) -> models.ModelVersions:
        return models.ModelVersions(self.pushed)

    def _promote_model(self, request: models.PromoteModel, _: Credential | None) -> ModelVersion:
        self.changes.append(request)
        return next(each for each in self.pushed if each.version == request.version)

    def _rollback_model(self, request: models.RollbackModel, _: Credential | None) -> ModelVersion:
        self.changes.append(request)
        return self.pushed[-1]

    def _withdraw_model(self, request: models.WithdrawModel, _: Credential | None) -> ModelVersion:
        self.changes.append(request)
        return self.pushed[0]

    def _retire_model_version(self, request: models.RetireModelVersion, _: Credential | None) -> ModelVersion:
        self.changes.append(request)
        return self.pushed[-1]

    def _search_models(self, request: model_search.SearchModels, _: Credential | None) -> FoundModels:
        rows = tuple(row for row in self.found.models if request.text in row.name)
        return msgspec.structs.replace(self.found, models=rows)

    def _plan_model(self, request: model_search.PlanModel, _: Credential | None) -> FoundModel:
        if request.reference != FOUND.name:
            raise errors.UnknownModel(f"no model is called {request.reference}", hint="did you mean qwen3:8b?")
        return FOUND

    def _list_deployments(self, _request: deployments.ListDeployments, _: Credential | None) -> deployments.Deployments:
        return deployments.Deployments(tuple(Deployment(name, each, self.copies, 0) for name, each in self.deployments.items()))

    def _deploy_model(self, request: deployments.DeployModel, _: Credential | None) -> Nothing:
        if request.name == "refused":
            raise errors.BadRequest("the configuration is full", hint="remove documents")
        self.deployments[ModelName(request.name)] = request.document
        return Nothing()

    def _undeploy_model(self, request: deployments.UndeployModel, _: Credential | None) -> Nothing:
        if self.deployments.pop(ModelName(request.name), None) is None:
            raise errors.NotFound(f"no deployment is called {request.name!r}")
        return Nothing()
