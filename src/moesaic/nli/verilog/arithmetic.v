// Blocks that the unit is made of. FP16 codes have the infinities and NaN taken out before they come here.

// A 40-bit magnitude: FP16 as a whole number of 2^-24.
module nli_fixed (
    input  wire [14:0] code,
    output wire [39:0] magnitude
);
    wire normal = |code[14:10];
    wire [4:0] shift = normal ? code[14:10] - 5'd1 : 5'd0;
    assign magnitude = {29'd0, normal, code[9:0]} << shift;
endmodule

// Shifts left until the top bit is set, but not by more than `room`; `count` is by how much.
module nli_normalise #(
    parameter W = 41,
    parameter C = $clog2(W)
) (
    input  wire [W-1:0] in,
    input  wire [C-1:0] room,
    output wire [W-1:0] out,
    output wire [C-1:0] count
);
    wire [W-1:0] moved [0:C];
    wire [C-1:0] left  [0:C];
    assign moved[C] = in;
    assign left[C]  = room;
    genvar i;
    generate
        for (i = C - 1; i >= 0; i = i - 1) begin : halve
            assign count[i] = ~|moved[i+1][W-1-:(1<<i)] & (left[i+1] >= (1 << i));
            assign moved[i] = count[i] ? moved[i+1] << (1 << i) : moved[i+1];
            assign left[i]  = count[i] ? left[i+1] - (1 << i) : left[i+1];
        end
    endgenerate
    assign out = moved[0];
endmodule

// y + change, or y - change if `falls`, as sign and magnitude, in multiples of 2^-26; the sum fits if y and sum are FP16.
module nli_add (
    input  wire [15:0] y,
    input  wire        falls,
    input  wire [42:0] change,
    output wire        negative,
    output wire [41:0] magnitude
);
    wire [39:0] fixed;
    nli_fixed y_fixed (.code(y[14:0]), .magnitude(fixed));
    wire        apart = y[15] != falls;
    wire [42:0] sum;
    nli_add_or_subtract #(.W(43)) either (.a({1'b0, fixed, 2'd0}), .b(change), .subtract(apart), .out(sum));
    wire        crosses = apart && sum[42];
    wire [41:0] turned = -sum[41:0];
    assign magnitude = crosses ? turned : sum[41:0];
    assign negative = y[15] ^ crosses;
endmodule

// a + b or a - b by one adder: to subtract, b is inverted and one is carried in.
module nli_add_or_subtract #(
    parameter W = 41
) (
    input  wire [W-1:0] a,
    input  wire [W-1:0] b,
    input  wire         subtract,
    output wire [W-1:0] out
);
    wire unused;
    assign {out, unused} = {a, 1'b1} + {b ^ {W{subtract}}, subtract};
endmodule

// a - b: its sign, the 16 leading bits of its magnitude, and how far these are below 2^16: lead[15] stands for
// 2^(16 - below).
module nli_difference (
    input  wire [15:0] a,
    input  wire [15:0] b,
    output wire        negative,
    output wire [15:0] lead,
    output wire [5:0]  below
);
    wire        swap = a[14:0] < b[14:0];
    wire        alike = a[15] == b[15];
    wire [39:0] larger, smaller;
    nli_fixed larger_fixed (.code(swap ? b[14:0] : a[14:0]), .magnitude(larger));
    nli_fixed smaller_fixed (.code(swap ? a[14:0] : b[14:0]), .magnitude(smaller));
    wire [40:0] magnitude;
    nli_add_or_subtract #(.W(41)) either (.a({1'b0, larger}), .b({1'b0, smaller}), .subtract(alike), .out(magnitude));
    assign negative = alike ? swap ^ a[15] : a[15];  // or anything where the difference is zero
    wire [40:0] normal;
    nli_normalise #(.W(41)) normalise (.in(magnitude), .room(6'd63), .out(normal), .count(below));
    assign lead = normal[40:25];
endmodule

// The nearest FP16 number, ties to even, saturated; zero is +0. magnitude[41] stands for 2^(15 + power), where the power
// of a range reduction comes as room = 29 + power: by so many places a number can be shifted until it is subnormal.
module nli_round (
    input  wire        negative,
    input  wire [41:0] magnitude,
    input  wire [5:0]  room,
    output wire [15:0] code
);
    wire [41:0] normal;
    wire [5:0]  count;
    nli_normalise #(.W(42)) normalise (.in(magnitude), .room(room), .out(normal), .count(count));
    wire up = normal[30] & (normal[31] | (|normal[29:0]));
    wire [5:0]  exponent = room - count;  // less one: the leading bit adds it, and so does a carry
    wire [16:0] rounded = {1'b0, exponent, 10'd0} + {6'd0, normal[41:31]} + {16'd0, up};
    wire [14:0] saturated = rounded > 17'h7BFF ? 15'h7BFF : rounded[14:0];
    assign code = {negative & (|saturated), saturated};
endmodule

// A memory of one write port and one read port whose result is registered, as a compiled SRAM has it.
module nli_bank #(
    parameter W = 16,
    parameter DEPTH = 130,
    parameter A = $clog2(DEPTH)
) (
    input  wire         clk,
    input  wire         write,
    input  wire [A-1:0] write_at,
    input  wire [W-1:0] write_word,
    input  wire [A-1:0] read_at,
    output reg  [W-1:0] read_word
);
    reg [W-1:0] words [0:DEPTH-1];
    always @(posedge clk) begin
        if (write) words[write_at] <= write_word;
        read_word <= words[read_at];
    end
endmodule
