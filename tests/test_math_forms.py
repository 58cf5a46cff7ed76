r"""Forms that must be equal and forms that must differ, each written `gold == answer` or `gold != answer`, one a line."""

from __future__ import annotations

import pytest

from rewards.math_answer import equal

NUMBERS = r"""
42 == 42
42 == 42.0
42 == 42.
42 == +42
-5 == -5
-5 == −5
-5 != 5
7 == 007
0.4 == .4
0.5 == 1/2
1/2 == 0.5
1/2 == \frac{1}{2}
1/2 == \frac12
1/2 == \dfrac{1}{2}
1/2 == \tfrac 1 2
1/2 == \frac{1}2
1/2 == 2/4
1/2 == ½
-1/2 == -\frac{1}{2}
-1/2 == \frac{-1}{2}
-1/2 == \frac{1}{-2}
1/2 != 2
1/3 != 0.33
1/3 != 0.333
1/12 == 0.0833333333333333
1/3 == 0.333333
1/3 != 0.333334
2.5 == 5/2
2.5 != 2.05
1,234 == 1234
1234 == 1,234
1234 == 1\,234
1234 == 1{,}234
1234 == 1,\!234
1234 == 1 234
1234567 == 1,234,567
1234567 == 1,234567 ?
32349 != 32, 349
14{,}916 == 14916
1000.99 == 1,000.99
1.22 == 1,22
1e3 == 1000
1000 == 10^3
1000 == 10^{3}
1000 == 1e3
4.5e33 == 4.5 \times 10^{33}
4.5e33 == 4.5 \cdot 10^{33}
4.5e33 != 4.5 \times 10^{32}
1e-5 == 10^{-5}
1e-5 == 0.00001
3/2 == 1 1/2
3/2 == 1\frac{1}{2}
3/2 == 1 \frac12
-3/2 == -1\frac{1}{2}
40/9 == 4 4/9
4 != 4 4/9
918.5 == 918\frac{1}{2}
1 1/2 != 11/2
11/2 != 1 1/2
0.\overline{3} == 1/3
0.1\overline{6} == 1/6
0.1\overline{6} != 1/7
10 != 1
100 != 10
2516_8 == 2516
2516_8 == 2516_{8}
2516_8 != 2517_8
1358 == 2516_8
5 == $5$
5 == \(5\)
5 == \[5\]
5 == \boxed{5}
5 == 5!/4!
120 == 5!
6 == \binom{4}{2}
6 == {6}
6 == (6)
9 == (9)
2 != 3
2 != 2i
0 != 0.0000001
0 == -0
0 == 0.0
3 == 3.000
100 == 99.99999999999999999 ?
"""

UNITS = r"""
10 == \$10
\$10 == 10
10 == $10
10 == \$10.00
10.50 == \$10.50
1000.99 == 1,000.99€
-0.50 == -\$0.50
\$50 != 50 cents
\$0.50 == 50 cents
5 == 5\text{ cm}
5\text{ cm} == 5
5 == 5 cm
5\text{ cm} == 5 \mathrm{~cm}
5\text{ m} == 500\text{ cm}
5\text{ m} != 5\text{ cm}
5\text{ meters} == 5 m
15\mbox{ cm}^2 == 15
15\mbox{ cm}^2 == 15\text{ cm}^2
15\mbox{ cm}^2 == 15 square centimeters
90\text{ square units} == 90
18 == 18 dollars
18 == 18 dollars per day
18 == 18 apples
18 == \text{18 apples} ?
28\% == 28
28\% == 28%
28\% == 28 percent
28\% == 28 pct
28\% == 0.28
28\% == \frac{28}{100}
28 == 28\%
0.28 == 28\%
0.28 != 28
28/100 != 28
28 != 28/100
28\% != 29\%
28\% != 0.029
50\% == \frac{1}{2}
90^\circ == 90
90 == 90^\circ
90 == 90^{\circ}
90 == 90°
90 == 90 degrees
90^\circ != 91^\circ
90^\circ == 90\text{ degrees}
45^\circ != 0.785398
2\text{ hours} == 120\text{ minutes}
2\text{ hours} != 2\text{ minutes}
9\text{ min} == 9
8.24 \text{ mph} == \approx 8.24 \text{ mph}
3.5 \text{ kg} != 3.5 \text{ g}
6m != 6
6 == 6 m
"""

ALGEBRA = r"""
\sqrt{2} == \sqrt2
\sqrt{2} == sqrt(2)
\sqrt{2} == 2^{1/2}
\sqrt{2} == \frac{2}{\sqrt{2}}
\sqrt{2} == 1.41421356
\sqrt{2} != 1.4142
\sqrt{2} != 2
\sqrt{3} != \sqrt{2}
\frac{\sqrt{3}}{3} == \frac{1}{\sqrt{3}}
\frac{\sqrt{3}}{3} == \frac{\sqrt{3}}{3} \approx 0.577
\sqrt{8} == 2\sqrt{2}
\sqrt[3]{8} == 2
\sqrt[3]{-8} == -2
\sqrt[3]{x}^2 == x^{2/3}
\sqrt{6} == \sqrt{2}\sqrt{3}
\sqrt{5+2\sqrt{6}} == \sqrt{2}+\sqrt{3}
\sqrt{5+2\sqrt{6}} != \sqrt{2}+\sqrt{5}
\frac{1}{1+\sqrt{2}} == \sqrt{2}-1
4 != 4\sqrt{2}
2 != \frac{1+\sqrt{5}}{2}
1\sqrt{19} != 1
\pi == π
\pi == pi
\pi == 3.14159265
\pi != 3.14
\pi != \frac{22}{7}
2\pi == 2π
\frac{\pi}{2} == \pi/2
\frac{\pi}{2} == \frac{1}{2}\pi
\frac{\pi}{2} == 0.5\pi
e^{i\pi} == -1
e == \mathrm{e}
e^2 == \exp(2)
1 - \frac{1}{e} != 1 + \frac{1}{e}
\ln 2 == \ln(2)
\ln 8 == 3\ln 2
\log 8 == 3 \log 2
\log_2 8 == 3
\log_{10} 250 == \log 250
\log_{10} 100 == 2
-\log_{10} 250 != \log_{10} 250
\frac{\log 2}{\log 2-\log 3} == \frac{\ln 2}{\ln 2 - \ln 3}
\sin 30^\circ == \frac12
\tan^2(y)+1 == \sec^2(y)
\sin^2 x + \cos^2 x == 1
2\sin b\cos a == \sin(a+b)-\sin(a-b)
\sin(2x) == 2\sin x\cos x
\sin(x) != \cos(x)
\sin^{-1}(x) == \arcsin x
\arctan 1 == \frac{\pi}{4}
np.arcsin(10/13) == \arcsin(10/13)
x^2+2x+1 == (x+1)^2
x^2+2x+1 == x^2 + 2*x + 1
x^2+2x+1 == x**2+2*x+1
x^2+2x+1 != x^3+2x+1
x^2+2x+1 != x^2+2x
(x+y+z)^3 == (z+y+x)^3
(r+5)(r+5) == (r+5)^2
(a+5)(b+2) != (+5)(b+2)
x+1 != x+2
x+1 != t+1
\frac{x+2}{7} == \frac{x}{7}+\frac{2}{7}
\frac{1}{x} != \frac{1}{x^2}
e^x != e^{2x}
2-2p == 2(1-p)
\frac{n(n+1)}{2} == \frac{n^2+n}{2}
\frac{n(n+1)}{2} == \binom{n+1}{2}
\binom{2n}{n} == \frac{(2n)!}{(n!)^2}
\binom{2n}{n} != \binom{2n}{n+1}
\frac{d!}{2k(d-k)!} == \frac{d!}{2 k \cdot (d-k)!}
2^{n}-n-1 == 2\cdot 2^{n-1}-n-1
2^{n}-n-1 != 2^{n}-n
\left\lfloor\frac{2 n}{3}\right\rfloor+1 == \lfloor 2n/3 \rfloor + 1
\lceil n/2 \rceil == \lfloor (n+1)/2 \rfloor
\lceil n/2 \rceil != \lfloor n/2 \rfloor
|x-2| == |2-x|
|x-2| != x-2
a^{-1} == \frac1a
x_1+x_2 == x_{2}+x_{1}
x_1+x_2 != x_1+x_3
\frac{dM}{dt} == \frac{d M}{d t}
3x^{-2/3} == \frac{3}{x^{2/3}}
\frac{e^{t}}{3}+c e^{-2 t} == e^t/3 + c*e^(-2t)
4 e^{\cosh(4x)} \sinh(4x) == 4 \sinh(4x) e^{\cosh(4x)}
1+\sqrt{3} i == 1+i\sqrt3
-2+2\sqrt{3} i != 2+2\sqrt{3} i
\frac{5}{1-2i} == 1+2i
\frac{\sqrt{\sqrt{11}+\sqrt{194}}}{15+2\sqrt{33}} == \frac{\sqrt{\sqrt{11}+\sqrt{194}}}{2\sqrt{33}+15}
\frac{1}{2}x != \frac12
7 \sin(\frac{\pi}{5}x) + 1 == 7*sin(pi*x/5)+1
-162\pi == -pi*2*9^2
10\sqrt{2} != 5*[1+sqrt(2)]
\sum_{k=0}^{n-1} F_k F_{n-k-1} == \sum_{k=0}^{n-1} F_{n-k-1} F_k
\sum_{k=0}^{n-1} F_k F_{n-k-1} != \sum_{k=0}^{n-2} F_k F_{n-k-2}
"""

HUGE = r"""
\frac{1}{2^{99}} == 2^{-99}
\frac{1}{2^{99}} != \frac{1}{2^{98}}
\frac{1}{2004!} == \frac{1}{2004!}
\frac{1}{2004!} != \frac{1}{2006!}
\frac{1}{2004!} != 0
2^{1009} == 2 \cdot 2^{1008}
2^{1009} != 2^{1008}
2^{1009} != 2^{1009}+1
\frac{100!}{2^{50}} == 100! \cdot 2^{-50}
\frac{100!}{2^{50}} != \frac{100!}{2^{49}}
10^{100} != 10^{100}+1
9^{9^{9}} == 9^{9^9}
9^{9^{9}} != 9^{9^9}+1
9^{9^{9}} != 9^{9^8}
10^{10000} != 10^{9999}
1 != 1+10^{-30}
0 != 10^{-200}
0 != \frac{1}{9^{9^9}}
0 != 2^{-99}-2^{-100}
"""

STRUCTURES = r"""
(1,2) == (1, 2)
(1,2) == \left(1,2\right)
(1,2) == ( 1 , \frac{4}{2} )
(1,2) != (2,1)
(1,2) != (1,2,3)
(1,\frac{9}{2}) == (1,4.5)
(3, \frac{\pi}{2}) == \left( 3, \frac{\pi}{2} \right)
(3,1) != {1,3}
(1,3) != \{1,3\}
(1,3) == 1,3
(0,1) != [0,1]
[0,1) == [0,1)
[0,1) != (0,1]
[0,9) != [0,1)
[2, 2.5] == [2, 5/2]
(-\infty,5) == (-infinity, 5)
(-\infty,5) == (-\infty, 10/2)
(-\infty,5) != (-\infty, 5]
(1,\infty) == (1, +\infty)
1 != -[0,1)
\{1,2,3\} == \{3,2,1\}
\{1,2,3\} == 1,2,3
\{1,2,3\} == 1, 2 and 3
\{1,2,3\} != \{1,2\}
\{1,2\} != \{1,2,3\}
\{1,2\} == \{1,2,2\}
1,2 == 2,1
1,2 == 1 \text{ and } 2
1,2 == 1 \text{ or } 2
1,2 == 1, \text{ and } 2
1,2 == 1;2
1,2 != 1
1 != 1,2
1 != 1 or 2
-2,1 == 1,-2
19, 46, and 82 == 19, 46, \text{ and } 82
19, 46, and 82 != 21, 36, and 82
1 \pm \sqrt{19} == 1-\sqrt{19}, 1+\sqrt{19}
1 \pm \sqrt{19} == \{1+\sqrt{19}, 1-\sqrt{19}\}
1 \pm \sqrt{19} != 1+\sqrt{19}
\pm 2021 == -2021, 2021
\pm 2021 != 2021
\{1\pm\sqrt{5},-2\} == \{-2, 1+\sqrt5, 1-\sqrt5\}
\{1\pm\sqrt{5},-2\} != \{2, 1+\sqrt5, 1-\sqrt5\}
(2,1),(1,2) == (1,2),(2,1)
(2,1),(1,2) != (1,2),(1,2)
(11,7)or(7,11) == (7,11), (11,7)
(0;0;0),(4;-2;6) == (4,-2,6),(0,0,0)
(1,7,103,105) == (1, 7, 103, 105)
(1,7,103,105) != (1, 7, 103105)
\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix} == \begin{bmatrix}1&2\\3&4\end{bmatrix}
\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix} == \left[\begin{array}{cc}1 & 2 \\ 3 & 4\end{array}\right]
\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix} != \begin{pmatrix}1 & 2 \\ 3 & 5\end{pmatrix}
\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix} != \begin{pmatrix}1 & 3 \\ 2 & 4\end{pmatrix}
\begin{pmatrix}1 \\ 2\end{pmatrix} != \begin{pmatrix}1 & 2\end{pmatrix}
\begin{pmatrix}1 \\ 2\end{pmatrix} == (1,2)
\begin{pmatrix} 1/2 \\ 1 \end{pmatrix} == \frac{1}{2}\begin{pmatrix} 1 \\ 2 \end{pmatrix}
\begin{pmatrix}6 & 8 \\ 10 & 12\end{pmatrix} == \begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix} + \begin{pmatrix}5 & 6 \\ 7 & 8\end{pmatrix}
3:4 == 6:8
3:4 == 3/4
3:4 != 4:3
1:2:3 == 2:4:6
1:2:3 != 1:2:4
12:00 == 12:00
12:00 != 1:00
7:32 == S_{MBCN}:S=7:32
\emptyset == \{\}
\emptyset == \varnothing
"""

RELATIONS = r"""
2 == x=2
x=2 == 2
x = 2 == y=2 ?
2 != x=3
2 == x = 1+1 = 2
11 == x = 5+5+1 = 7 = 11
1/3 == x = 1/3 \approx 0.33
11 == x\approx11
2 == f(x)=2
x^2 == f(x)=x^2
f(x)=x^2 == f(x)=x^2
f(x)=x^2 == f(n)=n^2
f(x)=x^2 != f(x)=x^3
f(x)=x,f(x)=-x == f(x)=-x, f(x)=x
f(x) != f(y)
(p,q)=(3,2) == (3,2)
(p,q)=(3,2) != (2,3)
AB=4,CD=5 == 4, 5
a_3 = 2, a_{37} = 19 == a_{37} = 19, a_3 = 2
x=2, y=3 == y=3, x=2
x=2, y=3 == (2,3)
x=2, y=3 != x=3, y=2
x=2, y=3 != 3,2
p=5,q=2;p=7,q=2 == (5,2),(7,2)
x=2 \text{ or } x=3 == \{2,3\}
x=1, x=\frac{-1 \pm \sqrt{13}}{4} == 1, \frac{-1+\sqrt{13}}{4}, \frac{-1-\sqrt{13}}{4}
\frac{NO}{BO}=\frac{1}{\sqrt{6}} == \frac{1}{\sqrt{6}}
|AB|=1 == 1
7 = 11a+c != 11a+c
a +3z = 0 != 0
2x + z = 1 != 1
a^2 + b = 0 != 0
5 == x+y=5
5 != 2x=5
34x+45y-20z+100=0 == -34x-45y+20z-100=0
34x+45y-20z+100=0 != 34x+45y-20z-100=0
2x+4y-3=0 == y=-\frac{1}{2}x+\frac{3}{4}
y=2x+3 == 2x-y+3=0
y=2x+3 != y=2x-3
y=2x+3 == 2x+3
x^2/4 + y^2/3 = 1 == x^2/16 + y^2/12 = 1/4
x^2+y^2=1 != x^2+y^2=2
x > 5 == x \gt 5
x > 5 == 5 < x
x > 5 != x < 5
x > 5 != x \ge 5
x < 1 == -x > -1
x < 1 != x > -1
x \neq 3 == x != 3
x \neq 3 == (-\infty,3)\cup(3,\infty)
x \neq 3 == \mathbb{R} \setminus \{3\}
-2 \le x \le 7 == [-2,7]
-2 \le x \le 7 == x \in [-2,7]
-2 \le x \le 7 != (-2,7)
-793 < a < 10 == (-793, 10)
0<f(x)<1 == (0,1)
k \ge 2 == [2,\infty)
k \ge 2 != (2,\infty)
x<-1 \text{ or } x>1 == (-\infty,-1)\cup(1,\infty)
x^2 < 4 == (-2,2)
1\leq|z|\leq \frac{3}{2} == [-\frac{3}{2}, -1] \cup [1, \frac{3}{2}]
[-1, -\frac{1}{2}) \cup (-\frac{1}{2}, 0) == (-\frac12,0) \cup [-1,-\frac12)
[-1, -\frac{1}{2}) \cup (-\frac{1}{2}, 0) != [-1,0)
(-\infty, 0) \cup\{1\} == \{1\}\cup(-\infty,0)
(-\infty, 0) \cup\{1\} != (-\infty,0)
x \in [0,1) == [0,1)
(2,12)\cup(12,102) == x \in (2,12) \cup (12,102)
(-\infty,\infty) == \mathbb{R}
(-\infty,\infty) == all real numbers
x+y<3 == y+x<3
x+y<3 != x+y>3
"""

WORDS = r"""
C == (C)
C == \text{(C)}
\text{(C)} == C
C == C. x = 42
C == C) 42
C == c
C != D
C != (D)
C != A, C
\text{A,D} == A, D
\text{E} == E
d != \text{E}
\text{even} == even
\text{Even} == even
odd != oddd
\text{Evelyn} == Evelyn
\text{Evelyn} != Eve
MAKE != KAME
ACF != AFC
\text{east} == \mathrm{east}
east != west
\text{June 20} == June 20
\text{June 20} != June 21
\text{1:03 PM} == 1:03 PM
\text{4:30 p.m.} == 4:30 p.m.
\text{neither} == neither
\text{ellipse} == Ellipse
\text{Monday} != \text{Friday}
MR=SRMC == MR=SRMC
"""

HACKS = r"""
0 != 1 or 0
0 != None or 0
0 != __import__('os').getpid() or 0
0 != x or 0
0 != lambda: 0
0 != False
0 != print(0)
0 != [0][0]
0 != 0 if True else 1
0 != int(0)
0 != x
0 != 0*x+1
5 != x
5 != 5 or 6
5 != 4, 5
5 != 5x
5 != {4,5}
5 != 4<x<6
5 != [4,6]
5 != \pm 5
5 != 5 \pm 1
5 != 5_3
1358 != 1358_8
0 != not 0
odd != dod
0 != nonzero 0
5 != not 5
5 != -5
5 != 5,5
1 != 1,001
5 != ?
5 != \frac{5}{0}
1 != \frac{0}{0}
\infty != 5
\infty != -\infty
1 != 1/0
5 != \text{}
5 != \boxed{}
5 != $$
1 != (1
1 != 1)
1 != \frac{1}{
2 != AZYUK2A
\sqrt{67},-\sqrt{85} != \sqrt{67}
1/5120 != 1/28800
0.66 != 0.66x
x != y
e != x
i != 1
"""

MIXED = r"""
f' == f'
185 == 185\
0.185 == .185
17 == 17\text{ any text}
17\text{ any text} == 17
(r+5)^2 == (r+5)(r+5)
C. x = 42 == C
\begin{bmatrix} 0 & 0 & 0 \\ 0 & 1 & 0 \\ 0 & 0 & 1 \end{bmatrix} == \begin{pmatrix}0&0&0\\0&1&0\\0&0&1\end{pmatrix}
\mathrm{E}*2 != E
5.001 != 5
(\begin{pmatrix}-\frac{7}{4}&-2\\4&\frac{1}{4}\\\end{pmatrix}) == \begin{pmatrix}-\frac{7}{4}&-2\\4&\frac{1}{4}\end{pmatrix}
-\frac{2(x^2+6)}{9(x^2-2)\sqrt[3]{x^2-2}^2} == -\frac{8x^2}{9(x^2-2)^{5/3}}+\frac{2}{3(x^2-2)^{2/3}}
33.3 != \frac{100}{3}
(6, -\frac{3}{8}) == \left( 6, -\frac{3}{8} \right)
A == (A) 3
70000 == 70,\!000
5 == \text{five}
12.01 == \$12.01
12 == $12.00
x = y + 2 == x - (y+2) = 0
0.1 == 10%
x=y == x = y
x=z != x=y
9a + 11 == 11 + 9a
3, 5, 7 != 3, 4, 7
3, 5, 7 == 3,5,7
2cm == 2 cm
3 == 3\text{ treeks}
33 == 033
0 == 000
33 == +033
1/2 == 0.50
1/2 == .5
16 == 016
1/0 == 1/0
1/0 != 2/0
(-\infty,3] == (-\infty, 3]
2x + 3 == 3 + 2x
x^2 == x**2
x+1 != not math
\frac{1}{2} != __import__('os').system('true')
\frac{1}{2} != eval("1")
\frac{1}{2} != 1 # comment
1 != 1 # comment
1 != print(1)
1 != lambda: 1
1 != `x`
1000000 != factorial(10**6)
\sqrt{2} != 10**100000
\sqrt{2} != (10**9)**(10**9)
\{1,2,3\} == {1,2,3}
\{5\} == 5
\{a\} == a
5 - 5c == -5*c+5*1
\frac{1}{\sqrt{3}} == 1/sqrt(3)
\frac{8}{5 - 4\cos(q^2)} == 2*8/(2 + 1*8 - 1*8*cos(q^2))
3\cos(2\sqrt{35}t) == 3*cos(sqrt(980/7)*t)
a^x \ln a == ln(a)*a^x
e^{-8x} \cos(9x) == x^0*e^(-8*x)*cos(9*x)
T = 1.02x + 10 == T = 1.02*x+10
x^3+2x^2+6 == x^3+2*x^2+6
(1, 2, 3, 6) != (2, 1, 3, 6)
10 == \text{10}
10 == \mathbf{10}
\frac{3}{4} == \frac{3}{4}\pi^0
\frac{\pi}{6}, \frac{5\pi}{6} == \frac{5 \pi}{6} \text{ and } \frac{\pi}{6}
x=\frac{\pi}{6}+\pi k == \frac{\pi}{6}+k\pi
\frac{11}{2} == 5.5\text{ inches}
\frac{11}{2} == 5\frac{1}{2}\text{ inches}
\text{(B)} == \textbf{(B)}
\text{(B)} == \textbf{(B)}\ 42
\text{(B)} == \boxed{\textbf{(B)}}
\text{(B)} == B: 42
\text{(B)} != \textbf{(C)}\ 42
\text{yes} == Yes
\text{Yes} != No
10\sqrt{3} \text{ units} == 10 \sqrt{3}
y = -\frac12 x + 3 == y=3-\frac{x}{2}
(x+2)^2+(y-3)^2=16 == (x + 2)^{2} + (y - 3)^{2} = 4^2
x^2+y^2 = 25 == x^{2}+y^{2}-25=0
6\text{ and }8 == 6, 8
6\text{ and }8 == 8, 6
\frac{3}{10} == 30\%
2^8 == 256
3.0\times 10^8 == 3e8
3.0\times 10^8 == 300000000
6.02e23 == 6.02 \times 10^{23}
1.5e-7 == 1.5 \cdot 10^{-7}
-\frac{1}{3} == \frac{-1}{3}
-\frac{1}{3} == -0.333333333
\frac{-1}{1997} == -\frac{1}{1997}
\sqrt{\frac{1}{2}} == \frac{\sqrt{2}}{2}
\tan\frac{\pi}{4} == 1
\cot x == \frac{\cos x}{\sin x}
\cos^2 x == \frac{1+\cos 2x}{2}
|x| == \sqrt{x^2}
x != \sqrt{x^2}
n! == n \cdot (n-1)!
n! != (n-1)!
\binom{n}{2} == \frac{n(n-1)}{2}
2^{n+1} == 2 \cdot 2^n
2^{n+1} != 2^n + 1
(-1)^{n+1} == -(-1)^n
x \in (0,1) == 0 < x < 1
x \ge 3 \text{ or } x \le -3 == (-\infty,-3] \cup [3,\infty)
a = 1, b = 2 == a=1 \text{ and } b=2
a = 1, b = 2 == b=2, a=1
\langle 1,2,3 \rangle == (1,2,3)
\begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix} == \langle 1, 2, 3 \rangle
3i+4j != 3i+4k
x^2 - 1 == (x-1)(x+1)
\frac{x^2-1}{x-1} == x+1
i^2 == -1
60^\circ == \frac{\pi}{3}
5:3 == 5 : 3
1 : 2 == \frac{1}{2}
6 \text{ cm}^2 == 6\,\text{cm}^{2}
6 \text{ cm}^2 != 6 \text{ cm}^3
25\text{ mph} == 25 \text{ miles per hour}
25\text{ km/h} == 25
3\text{ hours and }5\text{ minutes} == 3 hours and 5 minutes
7:30 == 7:30 \text{ p.m.}
0.2 == 20 \%
16\frac{2}{3}\% == \frac{50}{3}\%
\frac{1}{6} == 16\frac{2}{3}\%
12 == 12.0000
12 != 1.2
1.2 == 1.20
10{,}000 == 10000
\$1{,}000 == 1000
1 million == 1000000
1.5\text{ million} == 1500000
\ln(e^2) == 2
\log_{3} 81 == 4
\pi r^2 == \pi \cdot r \cdot r
\frac{4}{3}\pi r^3 == \frac{4\pi r^3}{3}
\sum_{i=1}^{n} i != \sum_{i=1}^{n} i^2
\lfloor 3.7 \rfloor == 3
\max(2,3) == 3
\gcd(12,18) == 6
e^{\ln 5} == 5
"""

TABLES = {k: v for k, v in globals().items() if k.isupper() and isinstance(v, str)}
_ROWS = [(name, row) for name, table in TABLES.items() for row in table.strip().splitlines()]
ROWS = [(name, row) for name, row in _ROWS if not row.endswith(" ?")]


def split(row: str) -> tuple[str, str, bool]:
    """Gold, answer and whether they are equal; the first ` == ` or ` != ` divides (no gold here contains one)."""
    for i in range(len(row)):
        if row[i : i + 4] in (" == ", " != "):
            return row[:i], row[i + 4 :], row[i + 1] == "="
    raise AssertionError(row)


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[row for _, row in ROWS])
def test_form(name: str, row: str) -> None:
    gold, answer, expected = split(row)
    assert equal(answer, gold) is expected
    if not expected and name not in ("HACKS", "UNITS", "MIXED"):
        assert equal(gold, answer) is False
