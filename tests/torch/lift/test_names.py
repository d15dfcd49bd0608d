"""What nodes are called, and what their handles say about the modules that they ran in."""

import torch
from torch import nn
from torch.nn import functional
from torch_lifting import Net, batch_norms, double, export, graph_of, handle, maps, trained

from bnfold.graph import Graph
from bnfold.torch.lift.lift import lift

IMAGE = (2, 4, 5, 5)


def block() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


def test_layers_are_called_like_their_modules():
    module = nn.Sequential(block(), nn.ReLU(), nn.Sequential(block()))

    graph = graph_of(trained(module), double(*IMAGE))

    assert [found.name for found in batch_norms(graph)] == ["0.1", "2.0.1"]
    assert [found.name for found in maps(graph)] == ["0.0", "2.0.0"]
    assert [node.name for node in graph.nodes if node.op_type == "relu"] == ["1/relu"]


def test_the_second_call_of_a_module_has_the_name_of_its_node():
    module = trained(Net(lambda self, x: self.b(self.b(x)), b=block()))

    graph = graph_of(module, double(*IMAGE))

    assert [found.name for found in batch_norms(graph)] == ["b.1", "b.1/batch_norm_1"]
    first, second = (handle(found) for found in batch_norms(graph))
    assert first.module == second.module == "b.1"
    assert first.call != second.call
    assert [path for path, _ in second.outer_modules] == ["", "b", "b.1"]
    assert second.outer_modules[-1] == (second.module, second.call)


def test_several_layers_of_one_module_have_the_names_of_their_nodes():
    module = Net(
        lambda self, x: functional.batch_norm(functional.conv2d(x, self.w), self.m, self.v),
        w=torch.ones(4, 4, 1, 1, dtype=torch.float64),
        m=torch.ones(4, dtype=torch.float64),
        v=torch.ones(4, dtype=torch.float64),
    )

    graph = graph_of(nn.Sequential(module), double(*IMAGE))

    assert [found.name for found in graph.nodes] == ["0/conv2d", "0/batch_norm"]


def test_at_the_root_nodes_have_only_their_own_name():
    graph = graph_of(trained(nn.Conv2d(4, 4, 1)), double(*IMAGE))

    assert [found.name for found in graph.nodes] == ["conv2d"]
    assert handle(graph.nodes[0]).module == ""


def test_parts_of_a_module_are_lifted_into_one_graph():
    part = trained(block())
    program, other = export(part, double(*IMAGE)), export(part, double(3, 4, 6, 6))
    graph = Graph()

    assert lift(program, graph, prefix="head.1") is graph
    lift(other, graph, prefix="head.1")
    lift(program, graph, prefix="tail")

    assert [found.name for found in batch_norms(graph)] == ["head.1.1", "head.1.1/batch_norm", "tail.1"]
    assert len({found.name for found in graph.nodes}) == len(graph.nodes)
    assert handle(batch_norms(graph)[0]).outer_modules[0][0] == "head.1"
    assert handle(batch_norms(graph)[0]).scope.prefix == "head.1"


def test_a_decomposed_batch_norm_ends_in_the_item_that_is_read():
    graph = graph_of(trained(block()), double(*IMAGE), decomposed=True)

    (found,) = batch_norms(graph)

    assert found.name == "1"
    assert handle(found).node.name == "_native_batch_norm_legit_no_training"
    assert handle(found).last.name == found.outputs[0].name == "getitem"


def test_strides_that_an_affine_changes():
    module = Net(lambda self, x: self.bn(x.expand(2, 4, 5, 5)) * 2, bn=nn.BatchNorm2d(4))

    graph = graph_of(trained(module), double(2, 1, 5, 5))

    assert [handle(found).keeps_layout for found in graph.affines] == [False, True]


def test_a_second_getitem_of_the_same_item_is_an_identity():
    program = export(Net(lambda self, x: torch.add(*x.split(2, 1))), double(*IMAGE))
    split = next(node for node in program.graph.nodes if node.name == "split")
    first = next(node for node in program.graph.nodes if node.name == "getitem")
    add = next(node for node in program.graph.nodes if node.name == "add")
    with program.graph.inserting_before(add):
        again = program.graph.call_function(first.target, (split, 0))
        again.meta.update(first.meta)
    add.args = (again, again)

    found = {node.outputs[0].name: node for node in lift(program).nodes}

    assert found[again.name].op.value == "identity"
    assert found[again.name].inputs[0].name == "getitem"
    assert len(found[again.name].outputs[0].uses) == 2
