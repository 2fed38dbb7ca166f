#!/usr/bin/env python3
"""Write reference values computed by PyTorch in float64: golden.py OUT_DIR SEED [--small]

One safetensors file a family; tensors are named `CASE.NAME`, and the file's metadata has one JSON string a case
with its attributes. Seed 1 made the files beside this script.
"""
import json, random, sys
import torch, torch.nn as nn, torch.nn.functional as F
from safetensors.torch import save_file
out, seed = sys.argv[1], int(sys.argv[2])
torch.manual_seed(seed); R = random.Random(seed); torch.set_default_dtype(torch.float64); torch.set_num_threads(1)

class Family:
    def __init__(s, name): s.name, s.t, s.m, s.n = name, {}, {}, 0
    def add(s, attrs, **ts):
        c = f"case{s.n}"; s.n += 1; s.m[c] = json.dumps(attrs)
        for k, v in ts.items():
            if v is not None: s.t[f"{c}.{k}"] = v.detach().clone().contiguous()
    def save(s): save_file(s.t, f"{out}/{s.name}.safetensors", metadata=s.m); print(s.name, s.n)

def grads(y, dy, *xs): return torch.autograd.grad(y, xs, dy)
def rn(*s): return torch.randn(tuple(s)).requires_grad_()

f = Family("unary")
U = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "mish": F.mish, "elu": F.elu, "silu": F.silu,
     "leaky_relu_0.01": F.leaky_relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "exp": torch.exp, "softplus": F.softplus,
     "rrelu_eval_0.125_0.3333333333333333": lambda x: F.rrelu(x, 1/8, 1/3, False), "abs": torch.abs, "neg": torch.neg, "square": torch.square}
for n, g in U.items():
    x = rn(3, 5); x.data *= 3; y = g(x); dy = torch.randn_like(y); f.add({"op": n}, x=x, y=y, dy=dy, dx=grads(y, dy, x)[0])
for n, g in {"log": torch.log, "sqrt": torch.sqrt, "recip": torch.reciprocal, "rsqrt": torch.rsqrt}.items():
    x = (torch.rand(3, 5) + .2).requires_grad_(); y = g(x); dy = torch.randn_like(y); f.add({"op": n}, x=x, y=y, dy=dy, dx=grads(y, dy, x)[0])
f.save()

f = Family("binary_broadcast")
for sa, sb in [((3, 4), (3, 4)), ((2, 3, 4), (4,)), ((2, 1, 4), (3, 1)), ((1,), (2, 3)), ((), (2, 3)), ((5, 1, 2, 1), (3, 1, 4))]:
    for n, g in {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "maximum": torch.maximum, "pow": None}.items():
        a, b = rn(*sa), rn(*sb)
        if n == "div": b.data = b.data.sign() * (b.data.abs() + .5)
        if n == "pow": a.data = a.data.abs() + .3; g = torch.pow
        y = g(a, b); dy = torch.randn_like(y); da, db = grads(y, dy, a, b); f.add({"op": n}, a=a, b=b, y=y, dy=dy, da=da, db=db)
f.save()

f = Family("reduce")
for n, g in {"sum": torch.sum, "mean": torch.mean, "amax": torch.amax, "logsumexp": torch.logsumexp, "var_biased": lambda x, dim, keepdim: torch.var(x, dim=dim, unbiased=False, keepdim=keepdim)}.items():
    for dims in [(0,), (1,), (-1,), (0, 2), (0, 1, 2)]:
        for kd in (False, True):
            x = rn(3, 4, 5); y = g(x, dim=dims, keepdim=kd); dy = torch.randn_like(y); f.add({"op": n, "dims": dims, "keepdim": kd}, x=x, y=y, dy=dy, dx=grads(y, dy, x)[0])
for n, g in {"softmax": torch.softmax, "log_softmax": torch.log_softmax}.items():
    for d in (0, 1, -1):
        x = rn(3, 4, 5); y = g(x, dim=d); dy = torch.randn_like(y); f.add({"op": n, "dims": [d]}, x=x, y=y, dy=dy, dx=grads(y, dy, x)[0])
f.save()

f = Family("matmul")
for sa, sb in [((4, 5), (5, 3)), ((2, 4, 5), (2, 5, 3)), ((2, 3, 4, 5), (5, 6)), ((2, 1, 4, 5), (3, 5, 2)), ((1, 7), (7, 1)), ((5,), (5, 3)), ((4, 5), (5,))]:
    a, b = rn(*sa), rn(*sb); y = a @ b; dy = torch.randn_like(y); da, db = grads(y, dy, a, b); f.add({}, a=a, b=b, y=y, dy=dy, da=da, db=db)
f.save()

f = Family("conv2d")
for i in range(26):
    g = R.choice([1, 1, 1, 2, 3]); cin, cout = g * R.randint(1, 3), g * R.randint(1, 3)
    if i % 6 == 5: g = cin = R.randint(2, 5); cout = cin * R.choice([1, 1, 2])
    k = (R.randint(1, 5), R.randint(1, 5)); st = (R.randint(1, 3), R.randint(1, 3)); pd = (R.randint(0, 3), R.randint(0, 3)); dl = (R.randint(1, 2), R.randint(1, 2))
    h = max(dl[0] * (k[0] - 1) + 1 - 2 * pd[0], 1) + R.randint(0, 6); w = max(dl[1] * (k[1] - 1) + 1 - 2 * pd[1], 1) + R.randint(0, 6)
    x, wt, b = rn(R.randint(1, 3), cin, h, w), rn(cout, cin // g, *k), (rn(cout) if R.random() < .7 else None)
    y = F.conv2d(x, wt, b, st, pd, dl, g); dy = torch.randn_like(y); gr = grads(y, dy, *[t for t in (x, wt, b) if t is not None])
    f.add({"stride": st, "padding": pd, "dilation": dl, "groups": g}, x=x, w=wt, b=b, y=y, dy=dy, dx=gr[0], dw=gr[1], db=gr[2] if b is not None else None)
f.save()

f = Family("conv_transpose2d")
for i in range(12):
    g = R.choice([1, 1, 2]); cin, cout = g * R.randint(1, 3), g * R.randint(1, 3); k = (R.randint(2, 4), R.randint(2, 4)); st = (R.randint(1, 3), R.randint(1, 3))
    pd = (R.randint(0, k[0] - 1), R.randint(0, k[1] - 1)); op = (R.randint(0, st[0] - 1), R.randint(0, st[1] - 1))
    x, wt, b = rn(2, cin, R.randint(2, 5), R.randint(2, 5)), rn(cin, cout // g, *k), (rn(cout) if R.random() < .7 else None)
    try: y = F.conv_transpose2d(x, wt, b, st, pd, op, g)
    except RuntimeError: continue
    dy = torch.randn_like(y); gr = grads(y, dy, *[t for t in (x, wt, b) if t is not None])
    f.add({"stride": st, "padding": pd, "output_padding": op, "groups": g}, x=x, w=wt, b=b, y=y, dy=dy, dx=gr[0], dw=gr[1], db=gr[2] if b is not None else None)
f.save()

f = Family("pool2d")
for i in range(18):
    k = (R.randint(1, 3), R.randint(1, 3)); st = (R.randint(1, 3), R.randint(1, 3)); pd = (R.randint(0, k[0] // 2), R.randint(0, k[1] // 2)); x = rn(2, 3, R.randint(4, 9), R.randint(4, 9))
    if i % 3 == 0: y = F.max_pool2d(x, k, st, pd); at = {"op": "max", "kernel": k, "stride": st, "padding": pd}
    elif i % 3 == 1: y = F.avg_pool2d(x, k, st, pd, count_include_pad=bool(i % 2)); at = {"op": "avg", "kernel": k, "stride": st, "padding": pd, "count_include_pad": bool(i % 2)}
    else: o = (R.randint(1, 4), R.randint(1, 4)); y = F.adaptive_avg_pool2d(x, o); at = {"op": "adaptive_avg", "output": o}
    dy = torch.randn_like(y); f.add(at, x=x, y=y, dy=dy, dx=grads(y, dy, x)[0])
f.save()

f = Family("norm")
for shape in [(6, 4), (4, 3, 5, 2), (2, 5, 1, 3)]:
    for training in (True, False):
        c = shape[1]; x, w, b = rn(*shape), rn(c), rn(c); rm, rv = torch.randn(c), torch.rand(c) + .5; m0, v0 = rm.clone(), rv.clone()
        y = F.batch_norm(x, rm, rv, w, b, training, 0.1, 1e-5); dy = torch.randn_like(y); dx, dw, db = grads(y, dy, x, w, b)
        f.add({"op": "batch_norm", "training": training, "momentum": .1, "eps": 1e-5}, x=x, w=w, b=b, running_mean=m0, running_var=v0, running_mean_after=rm, running_var_after=rv, y=y, dy=dy, dx=dx, dw=dw, db=db)
for shape, d in [((3, 7), 1), ((2, 3, 8), 1), ((2, 3, 4), 2)]:
    ns = shape[-d:]; x, w, b = rn(*shape), rn(*ns), rn(*ns); y = F.layer_norm(x, ns, w, b, 1e-6); dy = torch.randn_like(y); dx, dw, db = grads(y, dy, x, w, b)
    f.add({"op": "layer_norm", "normalized_shape": ns, "eps": 1e-6}, x=x, w=w, b=b, y=y, dy=dy, dx=dx, dw=dw, db=db)
for gnum in (1, 2, 4):
    x, w, b = rn(2, 4, 3, 3), rn(4), rn(4); y = F.group_norm(x, gnum, w, b, 1e-5); dy = torch.randn_like(y); dx, dw, db = grads(y, dy, x, w, b); f.add({"op": "group_norm", "groups": gnum, "eps": 1e-5}, x=x, w=w, b=b, y=y, dy=dy, dx=dx, dw=dw, db=db)
f.save()

f = Family("loss")
for red in ("mean", "sum", "none"):
    for ls in (0., .1):
        x, t = rn(5, 7), torch.randint(0, 7, (5,)); y = F.cross_entropy(x, t, reduction=red, label_smoothing=ls); dy = torch.ones_like(y); f.add({"op": "cross_entropy", "reduction": red, "label_smoothing": ls}, x=x, target=t, y=y, dx=grads(y, dy, x)[0])
    for n, g in {"smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}.items():
        x, t = rn(5, 7), torch.randn(5, 7) * 2; y = g(x, t, reduction=red); f.add({"op": n, "reduction": red}, x=x, target=t, y=y, dx=grads(y, torch.ones_like(y), x)[0])
    x, t = rn(5, 7), torch.rand(5, 7); x.data *= 20; y = F.binary_cross_entropy_with_logits(x, t, reduction=red); f.add({"op": "bce_with_logits", "reduction": red}, x=x, target=t, y=y, dx=grads(y, torch.ones_like(y), x)[0])
f.save()

f = Family("optim")
OPT = {"sgd": (torch.optim.SGD, dict(lr=.1)), "sgd_momentum": (torch.optim.SGD, dict(lr=.1, momentum=.9, weight_decay=.01)), "sgd_nesterov": (torch.optim.SGD, dict(lr=.1, momentum=.9, nesterov=True, weight_decay=5e-4)),
       "sgd_dampening": (torch.optim.SGD, dict(lr=.05, momentum=.5, dampening=.1)), "adam": (torch.optim.Adam, dict(lr=.01, betas=(.9, .99), weight_decay=.02)), "adam_amsgrad": (torch.optim.Adam, dict(lr=.01, amsgrad=True)), "adamw": (torch.optim.AdamW, dict(lr=.01, weight_decay=.1)),
       "rmsprop": (torch.optim.RMSprop, dict(lr=.05, alpha=.9, eps=1., weight_decay=2e-4)), "rmsprop_momentum_centered": (torch.optim.RMSprop, dict(lr=.01, momentum=.9, centered=True)), "adadelta": (torch.optim.Adadelta, dict(lr=1., rho=.9, eps=1e-6)),
       "asgd": (torch.optim.ASGD, dict(lr=.01, lambd=1e-4, alpha=.75, t0=5)), "adagrad": (torch.optim.Adagrad, dict(lr=.05, lr_decay=.01))}
for n, (cls, kw) in OPT.items():
    p = rn(4, 3); o = cls([p], **kw); p0 = p.detach().clone(); gs, ps = [], []
    for _ in range(12): p.grad = torch.randn(4, 3); gs.append(p.grad.clone()); o.step(); ps.append(p.detach().clone())
    f.add({"op": n, **{k: v for k, v in kw.items()}}, p0=p0, grads=torch.stack(gs), params=torch.stack(ps))
f.save()

f = Family("schedule")
S = torch.optim.lr_scheduler
def opt(lr=.1, mom=.9): return torch.optim.SGD([rn(1)], lr=lr, momentum=mom)
SCH = {"step": (lambda o: S.StepLR(o, 7, .1), {"step_size": 7, "gamma": .1}), "multistep": (lambda o: S.MultiStepLR(o, [5, 11, 30], .5), {"milestones": [5, 11, 30], "gamma": .5}), "exponential": (lambda o: S.ExponentialLR(o, .9), {"gamma": .9}),
       "cosine": (lambda o: S.CosineAnnealingLR(o, 40, 1e-4), {"t_max": 40, "eta_min": 1e-4}), "cosine_warm_restarts": (lambda o: S.CosineAnnealingWarmRestarts(o, 10, 2, 1e-4), {"t_0": 10, "t_mult": 2, "eta_min": 1e-4}),
       "cyclic_triangular": (lambda o: S.CyclicLR(o, .001, .1, 8, None, "triangular", cycle_momentum=False), {"base_lr": .001, "max_lr": .1, "step_size_up": 8, "mode": "triangular"}), "cyclic_triangular2": (lambda o: S.CyclicLR(o, .001, .1, 6, 9, "triangular2", cycle_momentum=False), {"base_lr": .001, "max_lr": .1, "step_size_up": 6, "step_size_down": 9, "mode": "triangular2"}),
       "cyclic_exp_range": (lambda o: S.CyclicLR(o, .001, .1, 8, None, "exp_range", .98, cycle_momentum=False), {"base_lr": .001, "max_lr": .1, "step_size_up": 8, "mode": "exp_range", "gamma": .98}),
       "one_cycle": (lambda o: S.OneCycleLR(o, .4, total_steps=60), {"max_lr": .4, "total_steps": 60, "pct_start": .3, "anneal": "cos", "div_factor": 25., "final_div_factor": 1e4}), "one_cycle_linear": (lambda o: S.OneCycleLR(o, .4, total_steps=60, pct_start=.2, anneal_strategy="linear", three_phase=True), {"max_lr": .4, "total_steps": 60, "pct_start": .2, "anneal": "linear", "three_phase": True}),
       "linear_warmup": (lambda o: S.LinearLR(o, .1, 1., 10), {"start_factor": .1, "end_factor": 1., "total_iters": 10}), "polynomial": (lambda o: S.PolynomialLR(o, 30, 2.), {"total_iters": 30, "power": 2.})}
for n, (mk, at) in SCH.items():
    o = opt(); s = mk(o); lr, mo = [], []
    for _ in range(59): lr.append(o.param_groups[0]["lr"]); mo.append(o.param_groups[0]["momentum"]); o.step(); s.step()
    f.add({"op": n, "lr": .1, **at}, lr=torch.tensor(lr), momentum=torch.tensor(mo))
o = opt(); s = S.ReduceLROnPlateau(o, "max", .5, patience=3, threshold=1e-3, cooldown=2); lr, me = [], []
for i in range(50): v = min(.7, .1 + .03 * i) + R.uniform(-.01, .01); me.append(v); s.step(v); lr.append(o.param_groups[0]["lr"])
f.add({"op": "reduce_on_plateau", "lr": .1, "mode": "max", "factor": .5, "patience": 3, "threshold": 1e-3, "cooldown": 2}, metric=torch.tensor(me), lr=torch.tensor(lr)); f.save()

f = Family("deeper_convnet")        # a whole model: five Adam steps of conv-bn-relu-conv-bn-relu-pool-affine-bn-relu-affine
m = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))
st = {f"init.{k}": v.clone() for k, v in m.state_dict().items()}; x, t = torch.randn(5, 7, 3, 8, 8), torch.randint(0, 5, (5, 7)); o = torch.optim.Adam(m.parameters(), 1e-2); ls = []
for i in range(5): o.zero_grad(); l = F.cross_entropy(m(x[i]), t[i]); l.backward(); o.step(); ls.append(l.detach())
m.eval(); y = m(x[0]); f.add({"lr": 1e-2, "layers": "conv3x3(3,4) bn relu conv3x3(4,6) bn relu maxpool2 flatten linear(96,8) bn relu linear(8,5)"}, x=x, target=t, losses=torch.stack(ls), eval_logits=y, **st, **{f"final.{k}": v for k, v in m.state_dict().items()}); f.save()
